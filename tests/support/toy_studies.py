"""A study of a toy table, small enough to be run in a test."""

from __future__ import annotations

from pathlib import Path

BASE = """\
name: base
data: {kind: toy, sites: 2, features: 5, patients_per_site: 10}
model: {latent_size: 2, channels: [6], initial_scale: 0.5}
federation: {rounds: 1}
training: {local_steps: 2, batch_patients: 4}
privacy: {noise_multiplier: 2, divisor: 4, delta: 0.01, sampling_probability: 0.4, local_steps: 2}
report: {bootstrap: 100, panels: 0}
"""
STUDY = """\
name: toy
title: A toy study
question: Does <b>it</b> work?
notes: [Figures mean nothing.]
experiment: base.yaml
seed_keys: [seed, data.seed]
seeds: [11, 12]
groups:
  ten: ["data.patients_per_site=10"]
  twenty: ["data.patients_per_site=20"]
lines:
  - {name: mean, arm: predict-the-mean}
  - {name: federated, arm: federated}
  - {name: loud, arm: federated-dp, epsilons: [1, 8], set: ["privacy.noise_multiplier=null"]}
  - {name: given, arm: federated-dp, within: {twenty: ["privacy.divisor=8"]}}
metrics:
  - {task: reconstruction, metric: mse, label: squared error}
  - {task: anomaly, metric: auroc_residual, label: AUROC, better: higher}
against: mean
gap:
  metric: mse
  start: mean
  end: federated
  aims: [{group: ten, line: loud, epsilon: 8, share: 0.5}]
"""


def write_toy_study(folder: Path, study: str = STUDY, base: str = BASE) -> Path:
    """Write both files and return the study's path."""
    (folder / "base.yaml").write_text(base, encoding="utf-8")
    path = folder / "study.yaml"
    path.write_text(study, encoding="utf-8")
    return path
