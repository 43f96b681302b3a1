"""A deployment starts from public weights that were made beforehand: the server trains nothing and opens no data."""

import pytest
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from deploy.cli import app
from deploy.config import load_experiment
from deploy.simulation.public import warm_start
from server import app as server_app
from server.errors import ServerError
from server.federation import Progress
from vae.errors import WeightsError
from vae.models import signature_of
from vae.weights import hash_weights, load

pytestmark = pytest.mark.filterwarnings(
    "ignore::privacy.unsafe.UnsafeWarning"
)  # a plan without a privacy section

TEXT = """\
name: deployed
data: {kind: toy, sites: 3, features: 5}
public: {data: {kind: toy, features: 5, seed: 4}, steps: 5}
model: {latent_size: 2, channels: [6], input_shape: [5]}
"""
PRIVACY = """\
privacy: {epsilon: 8, delta: 1e-3, sampling_probability: 0.2, local_steps: 2, divisor: 4, learning_rate: 0.1}
"""


@pytest.fixture
def made(tmp_path):
    config, file = tmp_path / "experiment.yaml", tmp_path / "start.safetensors"
    config.write_text(TEXT, encoding="utf-8")
    done = CliRunner().invoke(
        app, ["start", "--config", str(config), str(file), "--cache", str(tmp_path / "cache")]
    )
    assert done.exit_code == 0, done.output
    return config, file


def _deployed(monkeypatch, tmp_path, config, start, **more):
    """Return the plan that the server would federate."""
    plans = []
    monkeypatch.setattr(
        server_app,
        "federate",
        lambda grid, plan, *_, **__: plans.append(plan) or Progress(round=0, state=None),
    )
    monkeypatch.setattr(server_app, "write_done", lambda *_: None)
    paths = {"experiment": str(config), "output": str(tmp_path / "out"), "start": str(start), **more}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=paths)
    server_app.run_deployed(None, context)
    return plans[0]


def test_the_deployed_run_starts_where_the_simulated_one_does(made, tmp_path, monkeypatch):
    config, file = made
    experiment = load_experiment(config)
    simulated = warm_start(experiment, experiment.model_spec((5,)), tmp_path / "other")
    assert hash_weights(_deployed(monkeypatch, tmp_path, config, file).start()) == hash_weights(simulated)
    assert hash_weights(load(file, signature_of(experiment.model_spec((5,))))[0]) == hash_weights(simulated)


def test_a_public_section_without_its_start_is_refused_and_the_reverse(made, tmp_path, monkeypatch):
    config, file = made
    with pytest.raises(ServerError, match="deploy start"):
        _deployed(monkeypatch, tmp_path, config, "")
    config.write_text(TEXT.replace("public:", "#"), encoding="utf-8")
    with pytest.raises(ServerError, match="goes with a `public` section"):
        _deployed(monkeypatch, tmp_path, config, file)


def test_a_start_of_another_model_is_refused(made, tmp_path, monkeypatch):
    config, file = made
    config.write_text(TEXT.replace("latent_size: 2", "latent_size: 3"), encoding="utf-8")
    with pytest.raises(WeightsError):
        _deployed(monkeypatch, tmp_path, config, file)


def test_without_public_data_or_shape_no_start_is_made(tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text(TEXT.replace(", input_shape: [5]", ""), encoding="utf-8")
    done = CliRunner().invoke(app, ["start", "--config", str(config), str(tmp_path / "file")])
    assert done.exit_code == 2
    assert not (tmp_path / "file").exists()


def test_noise_is_secret_unless_a_rehearsal_is_asked_for(made, tmp_path, monkeypatch):
    config, file = made
    config.write_text(TEXT + PRIVACY, encoding="utf-8")
    drawn = [
        {plan.randomness for plan in _deployed(monkeypatch, tmp_path, config, file, **more).plans.values()}
        for more in ({}, {"randomness": ""}, {"randomness": "os"}, {"randomness": "seeded"})
    ]
    assert drawn == [{"os"}, {"os"}, {"os"}, {"seeded"}]
    with pytest.raises(ServerError, match="randomness = none; give os"):
        _deployed(monkeypatch, tmp_path, config, file, randomness="none")
