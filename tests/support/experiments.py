"""Small experiments, and ways to run them in a test."""

import dataclasses
from pathlib import Path

from deploy.config import Experiment
from deploy.simulation.progress import Silent
from deploy.simulation.run import Setting, Trained, train

BASE = {
    "name": "test",
    "seed": 3,
    "data": {"kind": "toy", "sites": 3, "patients_per_site": 12, "records": [1, 3], "features": 5, "seed": 2},
    "model": {"latent_size": 2, "channels": [6], "initial_scale": 0.5},
    "federation": {"rounds": 2, "patience": 1},
    "training": {"local_steps": 2, "batch_patients": 4, "learning_rate": 0.01},
    "privacy": {
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "sampling_probability": 0.4,
        "local_steps": 2,
        "divisor": 5.0,
        "learning_rate": 0.01,
    },
    "arms": ["federated-dp"],
    "report": {"bootstrap": 100},
}


def experiment(**sections) -> Experiment:
    """Return the base experiment with some sections changed: dictionaries are merged, other values replaced."""
    merged = {**BASE}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return Experiment.model_validate_json(_json(merged))


def _json(value) -> str:
    import json

    return json.dumps(value)


def setting(
    made: Experiment, out: Path, *, workers: int = 1, engine: str = "local", progress=None
) -> Setting:
    """Return a setting whose cache lies beside its output."""
    out.mkdir(parents=True, exist_ok=True)
    return Setting(
        experiment=made,
        out=out,
        cache=out / "cache",
        engine=engine,
        workers=workers,
        progress=progress or Silent(),
    )


def run(made: Experiment, out: Path, **options) -> Trained:
    """Train an experiment."""
    return train(setting(made, out, **options))


def with_progress(base: Setting, progress) -> Setting:
    """Return the setting with another display."""
    return dataclasses.replace(base, progress=progress)
