"""A small study of three sites, the file of one of them, and what that site would answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.config import Experiment, load_experiment
from deploy.plan import Answer, foresee
from deploy.site import SiteConfig, load_site
from privacy.accounting import Release
from privacy.errors import RefusalCode
from privacy.plan import PrivacyPlan

EXPERIMENT = """\
name: study
data: {kind: toy, sites: 3, features: 8}
federation: {rounds: 4}
privacy: {noise_multiplier: 4, delta: 1.0e-5, sampling_probability: 0.05, local_steps: 5, divisor: 4}
"""
SITE = """\
site: site-2
dataset: d
data: {kind: toy, sites: 3}
ledger: ledger.sqlite
salt: salt
key: key.pem
policy:
  lifetime: {epsilon: 8, delta: 1.0e-5}
  per_run: {epsilon: 8, delta: 1.0e-5}
  min_noise_multiplier: 1
  max_sampling_probability: 0.1
  max_steps_per_round: 200
  max_grad_norm: 1
  max_records_per_patient: 8
  unit: patient
  randomness: os
  min_patients: 3
  patients_bound: 1000
  models: any
  min_sites: 3
  max_runtime_s: 60
"""
ROUND = Release(sampling_probability=0.05, noise_multiplier=4.0, steps=5)


def load_study(
    folder: Path, *, experiment: Sequence[str] = (), site: Sequence[str] = ()
) -> tuple[Experiment, dict[str, SiteConfig]]:
    """Write the study and the file of site-2 into a folder, and load both, each with overrides."""
    (folder / "study.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "site.yaml").write_text(SITE, encoding="utf-8")
    return load_experiment(folder / "study.yaml", experiment), {
        "site.yaml": load_site(folder / "site.yaml", site)
    }


def answer_of(folder: Path, *, experiment: Sequence[str] = (), site: Sequence[str] = ()) -> Answer:
    """Return what site-2 would answer."""
    outlook = foresee(*load_study(folder, experiment=experiment, site=site))
    answer = outlook.sites[1].answer
    assert answer is not None
    assert outlook.is_refused == bool(answer.objections)
    return answer


def codes(answer: Answer) -> list[RefusalCode]:
    """Return the codes of all objections."""
    return [objection.code for objection in answer.objections]


def plan(**changes: object) -> PrivacyPlan:
    """Return the plan that the study asks for, with some fields changed."""
    fields: dict[str, object] = {
        "sampling_probability": 0.05,
        "steps": 5,
        "noise_multiplier": 4.0,
        "max_grad_norm": 1.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return PrivacyPlan(**{**fields, **changes})  # type: ignore[arg-type]
