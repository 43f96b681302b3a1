"""`centre.yaml`, the programs it describes, and what `init` lays out."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.config import load_experiment
from deploy.errors import ConfigError
from deploy.ledger.failures import UsageError
from deploy.network.centre import centre_files, centre_programs, load_centre
from deploy.network.front import render
from deploy.network.hospital import hospital_programs
from deploy.network.loopback import loopback_pair
from deploy.network.project import make_project
from deploy.provision.failures import InputError
from deploy.site import load_site
from privacy.budget import run_filter
from tests.support.federations import require_nginx

EXPERIMENT = """\
name: rehearsal
data: {kind: toy, sites: 3, patients_per_site: 24, features: 6}
model: {family: vae, latent_size: 2, channels: [6], input_shape: [6]}
federation: {rounds: 3}
privacy: {epsilon: 8.0, delta: 1e-3, sampling_probability: 0.25, local_steps: 4, max_grad_norm: 1.0, divisor: 6, learning_rate: 0.05}
"""  # noqa: E501


@pytest.fixture
def lay(tmp_path):
    """Return what lays out the experiment, with changes to its file."""

    def lay(folder="p", *, old="", new="", seeded=False, front=True):
        file = tmp_path / "experiment.yaml"
        file.write_text(EXPERIMENT.replace(old, new) if old else EXPERIMENT)
        return make_project(load_experiment(file), tmp_path / folder, seeded=seeded, front=front)

    return lay


def test_every_file_that_is_laid_out_is_valid_and_every_secret_private(lay):
    project = lay()
    assert list(project.sites) == ["site-1", "site-2", "site-3"]
    centre = load_centre(project.centre)
    assert list(centre.sites) == list(project.sites)
    for key in project.folder.rglob("*"):
        if key.name in {"client.key", "supernode", "ca.key", "server.key"}:
            assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    for file in project.sites.values():
        site = load_site(file)
        assert site.policy.randomness == "os"
        assert site.agent is not None
        assert site.agent.seed is None


def test_a_hospital_allows_the_whole_experiment_and_not_one_round_more(lay):
    site = load_site(lay().sites["site-1"])
    policy, schedule = site.to_policy(), site.to_filter().schedule
    assert len(schedule) == 3
    assert run_filter(policy).allows(schedule)
    assert site.to_filter().accepts(schedule[:2], schedule[2])
    assert not site.to_filter().accepts(schedule, schedule[0])


def test_a_rehearsal_draws_from_the_experiments_seed(lay):
    site = load_site(lay(seeded=True, old="name: rehearsal", new="name: rehearsal\nseed: 9").sites["site-2"])
    assert site.agent is not None
    assert (site.agent.seed, site.policy.randomness) == (9, "seeded")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (", input_shape: [6]", "", "model.input_shape` is missing"),
        ("privacy:", "#", "has no `privacy` section"),
    ],
)
def test_what_no_hospital_could_run_is_refused_and_nothing_made(lay, tmp_path, old, new, rule):
    with pytest.raises(UsageError, match=rule):
        lay(old=old, new=new)
    assert not (tmp_path / "p").exists()


def test_a_folder_whose_sockets_would_have_too_long_a_path_is_refused(lay, tmp_path):
    with pytest.raises(UsageError, match="give a shorter folder"):
        lay("x" * 100)
    assert not (tmp_path / ("x" * 100)).exists()


def test_nothing_is_laid_out_over_another(lay):
    lay()
    with pytest.raises(InputError, match="exists already"):
        lay()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sites": {}}, "sites"),
        ({"sites": {"a": "k.pub", "b": "k.pub"}}, "is the key of `a`"),
        (
            {"front": {"port": 18100, "certificate": "c", "key": "k", "authority": "a", "revoked": "r"}},
            "is `port`",
        ),
        ({"port": 0}, "port"),
        ({"folders": "x"}, "folders"),
    ],
)
def test_a_centres_file_that_cannot_be_used_is_refused(tmp_path, change, rule):
    file = tmp_path / "centre.yaml"
    good = {"name": "c", "folder": "state", "port": 18100, "sites": {"a": "a.pub"}, "front": None}
    file.write_text(yaml.safe_dump(good))
    assert load_centre(file).front is None
    file.write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(ConfigError, match=rule):
        load_centre(file)


def test_flower_listens_on_loopback_and_talks_to_nobody_else(lay):
    require_nginx()
    project = lay()
    config = load_centre(project.centre)
    programs = centre_programs(config, centre_files(config))
    for file in project.sites.values():
        programs += hospital_programs(load_site(file), file)
    homes = [program.environment["FLWR_HOME"] for program in programs]
    assert len(set(homes)) == len(homes)
    for program in programs:
        environment = program.environment
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        if "--host" in program.argv:
            assert program.argv[program.argv.index("--host") + 1] == "127.0.0.1"
        if program.name in {"superlink", "supernode"}:
            assert program.argv[program.argv.index("--isolation") + 1] == "process"
        assert "--allow-runtime-dependency-installation" not in program.argv


def test_a_secret_of_the_environment_is_not_passed_on(lay, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    project = lay(front=False)
    config = load_centre(project.centre)
    for program in centre_programs(config, centre_files(config)):
        assert "hunter2" not in program.environment.values()


def test_a_relay_wants_a_name_since_nginx_compares_no_addresses(lay):
    file = lay().sites["site-1"]
    file.write_text(file.read_text().replace("localhost:", "127.0.0.1:"))
    with pytest.raises(UsageError, match="is an IP address"):
        hospital_programs(load_site(file), file)


@pytest.mark.parametrize(
    ("remove", "rule"),
    [
        ("node", "has no `node` section"),
        ("connection", "has no `connection` section"),
        ("agent", "needs `agent.socket`"),
    ],
)
def test_what_joining_needs_is_named(lay, remove, rule):
    file = lay().sites["site-1"]
    written = yaml.safe_load(file.read_text())
    del written[remove]
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(UsageError, match=rule):
        hospital_programs(load_site(file), file)


def test_nginx_takes_both_configurations(lay, tmp_path):
    require_nginx()
    project = lay()
    config = load_centre(project.centre)
    programs = centre_programs(config, centre_files(config))
    file = project.sites["site-1"]
    programs += hospital_programs(load_site(file), file)
    tried = [program for program in programs if "nginx" in program.argv[0]]
    assert [program.name for program in tried] == ["front", "relay"]
    for program in tried:
        done = subprocess.run([*program.argv, "-t"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render("front.conf", folder=Path("x"))


def test_the_pair_of_loopback_is_kept_and_made_anew_when_it_ends(tmp_path, monkeypatch):
    pair = loopback_pair(tmp_path / "pair")
    made = pair.certificate.read_bytes()
    assert loopback_pair(tmp_path / "pair").certificate.read_bytes() == made
    assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600
    shutil.rmtree(tmp_path / "pair")
    monkeypatch.setattr("deploy.network.loopback._DAYS", 29)
    soon = loopback_pair(tmp_path / "pair").certificate.read_bytes()
    monkeypatch.undo()
    assert loopback_pair(tmp_path / "pair").certificate.read_bytes() != soon
