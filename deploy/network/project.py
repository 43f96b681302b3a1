"""`python -m deploy init`: an experiment -> a whole federation on this machine, with keys, files and ledgers.

What `simulate.py` plays in one process, this lays out as it would stand in the field: a coordinating centre, and a
folder for each hospital of the experiment, each with keys of its own and a policy that allows this experiment and
nothing more. For rehearsals; at a real hospital, the hospital writes its own file and makes its own keys.

    FOLDER/experiment.yaml       the experiment, every field written out
    FOLDER/authority/            certificates (deploy/docs/provisioning.md)
    FOLDER/centre/centre.yaml    for `serve` and `submit`
    FOLDER/SITE/site.yaml        for `join`, `ledger`, `audit`, `doctor`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.config import Experiment
from deploy.documents import dump_yaml
from deploy.ledger.failures import UsageError
from deploy.network.loopback import HOST
from deploy.plans import noise_multiplier, privacy_plan
from deploy.provision.authority import create
from deploy.provision.files import new_folder
from deploy.provision.issuing import Term, issue_server, read_request, sign
from deploy.provision.site import make_keys
from privacy.accounting import PldAccountant, Release
from privacy.budget import run_filter
from privacy.plan import PrivacyPlan, RandomnessKind
from privacy.policy import Cap, Policy
from vae.spec import ModelSpec

_DAYS = 365
_LONGEST_SOCKET = 100  # sun_path of unix(7) holds 108 bytes
_PORTS_A_SITE = 2
_WIDENED = 1.02


@dataclass(frozen=True, kw_only=True)
class Project:
    """What was laid out.

    Attributes:
        folder: Everything.
        sites: Site -> its `site.yaml`.
    """

    folder: Path
    sites: Mapping[str, Path]

    @property
    def centre(self) -> Path:
        """Return the centre's file."""
        return self.folder / "centre" / "centre.yaml"

    @property
    def experiment(self) -> Path:
        """Return the experiment's file."""
        return self.folder / "experiment.yaml"


def make_project(
    experiment: Experiment, folder: Path, *, seeded: bool, front: bool, port: int = 18100
) -> Project:
    """Lay out a federation; its ledgers are begun by `begin_ledgers`.

    Args:
        experiment: With a privacy section and an input shape.
        folder: New.
        seeded: Draw everything from the experiment's seed, as a simulation does: nothing is private then.
        front: Put nginx with client certificates before the SuperLink.
        port: First of the ports on 127.0.0.1; the next few are used too.

    Raises:
        UsageError: the experiment cannot be deployed.
        InputError: something lies in the folder.
    """
    model = _deployable_model(experiment, folder)
    sites = experiment.site_names
    # Of the plan, a hospital's file holds what is the same at all of them.
    kind: RandomnessKind = "seeded" if seeded else "os"
    plan = privacy_plan(experiment, sites[0], noise_multiplier(experiment), randomness=kind)
    rules = _rules(experiment, plan, model)
    with new_folder(folder) as partial:
        term = Term(days=_DAYS, now=datetime.now(UTC))
        create(partial / "authority", experiment.name, days=10 * _DAYS, passphrase=None, now=term.now)
        issue_server(partial / "authority", [HOST, "localhost"], partial / "authority" / "server", term)
        (partial / "centre").mkdir(mode=0o700)
        (partial / "experiment.yaml").write_text(experiment.resolved_yaml())
        (partial / "centre" / "centre.yaml").write_text(
            dump_yaml(_centre(experiment.name, sites, port, front=front))
        )
        for index, site in enumerate(sites):
            home = partial / site
            home.mkdir(mode=0o700)
            request, _ = make_keys(site, home / "keys", None)
            sign(partial / "authority", read_request(request), home / "keys" / "client.pem", term)
            first = port + 2 + _PORTS_A_SITE * index
            written = {
                **_site(experiment, site, seeded=seeded),
                **rules,
                "connection": _connection(port, front=front),
                "node": {"folder": "node", "port": first, "relay_port": first + 1},
            }
            (home / "site.yaml").write_text(dump_yaml(written))
    return Project(folder=folder, sites={site: folder / site / "site.yaml" for site in sites})


def begin_ledgers(project: Project) -> None:
    """Begin the ledger of each hospital, as `python -m deploy ledger init` does.

    Raises:
        DeployError: a hospital's data do not fit its policy.
        DataError: they cannot be read.
    """
    from deploy.ledger.beginning import begin

    for file in project.sites.values():
        begin(file, file.parent / "state" / "cache")


def _deployable_model(experiment: Experiment, folder: Path) -> ModelSpec:
    """Return the model of an experiment that hospitals can run from here.

    Raises:
        UsageError: they cannot; with the way out.
    """
    if experiment.privacy is None:
        raise UsageError(
            f"{experiment.name}: has no `privacy` section, and a hospital's agent trains with one alone; add one"
        )
    if experiment.model.input_shape is None:
        raise UsageError(
            f"{experiment.name}: `model.input_shape` is missing, which the centre cannot look up: it opens no data; "
            "set it"
        )
    longest = max(len(str(folder.absolute() / site / "agent.sock")) for site in experiment.site_names)
    if longest > _LONGEST_SOCKET:
        raise UsageError(
            f"{folder}: a socket's path may have {_LONGEST_SOCKET} characters, and one here would have {longest}; "
            "give a shorter folder"
        )
    return experiment.model_spec(experiment.model.input_shape, experiment.model.num_covariates)


def _centre(name: str, sites: tuple[str, ...], port: int, *, front: bool) -> dict[str, Any]:
    """Return the centre's file."""
    section = {
        "host": HOST,
        "port": port + 1,
        "certificate": "../authority/server/server.pem",
        "key": "../authority/server/server.key",
        "authority": "../authority/ca.pem",
        "revoked": "../authority/crl.pem",
    }
    return {
        "name": name,
        "folder": "state",
        "port": port,
        "sites": {site: f"../authority/sites/{site}/supernode.pub" for site in sites},
        "front": section if front else None,
    }


def _site(experiment: Experiment, site: str, *, seeded: bool) -> dict[str, Any]:
    """Return what a hospital's file says of the hospital itself."""
    return {
        "site": site,
        "dataset": f"{experiment.name}-{site}",
        "data": _data(experiment, site),
        "ledger": "ledger.sqlite",
        "salt": "salt",
        "key": "site-key.pem",
        "agent": {
            "folder": "state",
            "socket": "agent.sock",
            "device": experiment.engine.device,
            **({"seed": experiment.seed} if seeded else {}),
        },
    }


def _connection(port: int, *, front: bool) -> dict[str, str]:
    """Return how a hospital reaches the centre: through nginx, or directly on this machine."""
    link = {"server": f"{HOST}:{port}", "ca": "../centre/state/loopback/ca.pem"}
    if front:
        link = {
            "server": f"localhost:{port + 1}",
            "ca": "../authority/ca.pem",
            "certificate": "keys/client.pem",
            "key": "keys/client.key",
        }
    return {**link, "supernode_key": "keys/supernode"}


def _data(experiment: Experiment, site: str) -> dict[str, Any]:
    """Return a hospital's part of the experiment's data."""
    data = experiment.data.model_dump(mode="json")
    if isinstance(data.get("sites"), dict):
        return {"kind": data["kind"], "held_out": data["held_out"], "source": data["sites"][site]}
    if data["kind"] == "abide":
        data["sites"] = [site]
    return data


def _rules(experiment: Experiment, plan: PrivacyPlan, model: ModelSpec) -> dict[str, Any]:
    """Return a rule and a policy that allow the experiment, and nothing more."""
    schedule = (plan.release(),) * experiment.federation.rounds
    cap = Cap(epsilon=PldAccountant().epsilon(schedule, plan.delta), delta=plan.delta)
    policy = Policy(
        lifetime=cap,
        per_run=cap,
        min_noise_multiplier=plan.noise_multiplier,
        max_sampling_probability=plan.sampling_probability,
        max_steps_per_round=plan.steps,
        max_grad_norm=plan.max_grad_norm,
        max_records_per_patient=plan.max_records_per_patient,
        unit=plan.unit,
        randomness=plan.randomness,
        min_patients=1,
        patients_bound=max(1, math.ceil(1 / plan.delta) - 1),
        models=frozenset([model.hash()]),
        metrics={},
        min_sites=len(experiment.site_names),
        max_runtime_s=experiment.federation.deadline_s,
    )
    return {
        "rule": {"kind": "fixed-plan", "schedule": [release.to_dict() for release in schedule]},
        "policy": _allowing(policy, schedule).to_dict(),
    }


def _allowing(policy: Policy, schedule: tuple[Release, ...]) -> Policy:
    """Return a policy whose caps one run of the schedule keeps to: what a run spends is counted by a looser rule."""
    epsilon = math.ceil(1e4 * policy.lifetime.epsilon) / 1e4
    while True:
        cap = Cap(epsilon=epsilon, delta=policy.lifetime.delta)
        policy = replace(policy, lifetime=cap, per_run=cap)
        if run_filter(policy).allows(schedule):
            return policy
        epsilon = math.ceil(1e4 * epsilon * _WIDENED) / 1e4
