"""A site: one hospital's data, its rules, its spending and its answers.

The same object stands behind the agent of a real hospital and inside a simulation. It refuses before any side
effect, reserves the privacy cost before it opens data, and answers a request that it has answered before from its
store.

Order within `train`: check the request, hold the ledger against kept heads, decide, look up, reserve, open data, train,
store, commit, answer. What is stored before it is committed has not left; what is committed is paid for.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import nn

from client.contract import MAX_HEADS, Description, FailureCode, Plan, TrainRequest, Update, Weights
from client.device import Device, choose_device
from client.errors import SiteError
from client.memory import OneDraw, PhysicalBatch
from client.subspace import check_basis
from client.train import Round, device_of, local_losses, train_round, training_only
from privacy.accounting import Release
from privacy.budget import Spending
from privacy.claim import Claim, ClaimKind
from privacy.compatible import check_model
from privacy.errors import RefusalCode, RefusedError
from privacy.noise import Randomness
from privacy.plan import PrivacyPlan
from vae.data.cohort import Batch, Cohort, SiteData
from vae.models import build, signature_of
from vae.models.protocol import Vae
from vae.spec import ModelSpec
from vae.weights import Signature, hash_weights, load, save, signature, to_numpy


class SiteService(Protocol):
    """What a ClientApp may ask of a site, in this process or behind the agent's socket."""

    def describe(self) -> Description:
        """Return who answers."""
        ...

    def train(self, request: TrainRequest, weights: Weights, basis: Weights | None = None) -> Update:
        """Return this site's update; `basis` holds the directions of a subspace, where the request has one.

        Raises:
            Exception: whatever went wrong; `client.failure.code_of` says what may be told of it.
        """
        ...


class Models:
    """Models that were built and checked, one for each specification, gradient engine and choice of what is trained.

    A round overwrites every parameter of its model before it trains, so one model serves one round after another,
    of one site or of all virtual sites of a process: never two at a time. A model is moved to its device once, and
    stays there. How many records fit into memory beside it is known here, too: that is of the device, not of a site.

    Args:
        device: Where models compute; settled at the first one.

    Attributes:
        batch: How many records are computed at once.
    """

    def __init__(self, device: Device = "auto") -> None:
        self._device = device
        self._made: dict[str, nn.Module] = {}
        self.batch = PhysicalBatch()

    def get(self, request: TrainRequest, plan: Plan) -> nn.Module:
        """Return the model of a request; what its parameters are now means nothing.

        Raises:
            ModelSpecError: the specification cannot be built.
            IncompatibleModelError: it cannot be trained as the plan says.
            SiteError: the device is not there.
        """
        trainable = request.learning.trainable
        key = f"{request.model.hash()}/{getattr(plan, 'grad_engine', 'none')}/{trainable}"
        if key not in self._made:
            model = build(request.model, seed=request.initial_seed)
            if isinstance(plan, PrivacyPlan):
                dummy = dummy_batch(request.model)
                with training_only(model, trainable):
                    check_model(model, dummy, request.model.latent_size, engine=plan.grad_engine)
            self._made[key] = model.to(choose_device(self._device))
        return self._made[key]


class Site:
    """One hospital, in this process.

    Args:
        name: Its name in the federation.
        open_data: Opens the cohorts; called once, at the first request that was decided and reserved.
        folder: Where spending, stored updates, local parameters and the diary lie.
        decide: Returns the plan to follow, at most tighter than the one asked for, or raises `RefusedError`.
        randomness: Makes the source of randomness of one request.
        spending: Opens the record of what this site has spent in a run.
        keep_updates: Store the last update, so that a repeated request is answered without training. A simulation
            turns this off: there the same request gives the same bits again.
        diary: Write losses and times of each round to `diary.jsonl` in the folder; local, never sent.
        models: Where models are kept; its own by default. Virtual sites of one process share them, so that memory
            does not grow with the number of sites.
        max_runtime_s: A round of training that takes longer [s] is ended; what was reserved for it stays spent.
    """

    def __init__(
        self,
        name: str,
        *,
        open_data: Callable[[], SiteData],
        folder: Path,
        decide: Callable[[TrainRequest], Plan],
        randomness: Callable[[TrainRequest], Randomness],
        spending: Callable[[str], Spending],
        keep_updates: bool = True,
        diary: bool = True,
        models: Models | None = None,
        max_runtime_s: float | None = None,
    ) -> None:
        self.name = name
        self._max_runtime_s = max_runtime_s
        self._open_data = open_data
        self._folder = folder
        self._decide = decide
        self._randomness = randomness
        self._spending = spending
        self._keep_updates = keep_updates
        self._diary = diary
        self._data: SiteData | None = None
        self._models = Models() if models is None else models

    def describe(self) -> Description:
        """Return who answers."""
        return Description(site=self.name)

    def data(self) -> SiteData:
        """Return the site's cohorts, opening them at the first call."""
        if self._data is None:
            self._data = self._open_data()
        return self._data

    def train(self, request: TrainRequest, weights: Weights, basis: Weights | None = None) -> Update:
        """Return this site's update for a request; `basis` holds the directions of a subspace (`client.subspace`).

        Raises:
            ContractError: the directions are not those of the request, or cannot be used.
            SiteError: the request does not fit its own weights or model, or memory does not suffice.
            RefusedError: the site's rules or its budget refuse.
            DataError: the data are not ready.
        """
        if hash_weights(weights) != request.base_hash:
            raise SiteError(
                FailureCode.BAD_REQUEST, f"round {request.round}: the weights are not those of base_hash"
            )
        spending = self._spending(request.run_id)
        spending.check(request.heads)
        plan = self._decided(request, spending)
        model = self._models.get(request, plan)
        if request.learning.precision != "float32" and device_of(model).type != "cuda":
            raise SiteError(
                FailureCode.BAD_REQUEST,
                f"precision {request.learning.precision}: is for a GPU, and this site computes on the CPU",
            )
        shared = cast(Vae, model).shared_names(request.sharing)
        expected = tuple(entry for entry in signature_of(request.model) if entry[0] in shared)
        if signature(weights) != expected:
            raise SiteError(
                FailureCode.BAD_REQUEST, f"round {request.round}: the weights are not those of the model"
            )
        check_basis(request, model, basis or {})
        update = self._stored(request, expected)
        if update is None:
            update = self._trained(request, weights, plan, model, spending, basis=basis)
        if isinstance(plan, PrivacyPlan):
            spending.commit(request.work, plan.release().steps, update.update_hash)
        return replace(
            update,
            receipt=spending.receipt(request.work, request.heads) if isinstance(plan, PrivacyPlan) else None,
            heads=spending.witness(request.heads)[:MAX_HEADS],
        )

    def _decided(self, request: TrainRequest, spending: Spending) -> Plan:
        """Return the plan to follow; a refusal is written down."""
        try:
            return self._decide(request)
        except RefusedError as refusal:
            spending.refuse(request.work, refusal.code)
            raise

    def _trained(
        self,
        request: TrainRequest,
        weights: Weights,
        plan: Plan,
        model: nn.Module,
        spending: Spending,
        *,
        basis: Weights | None,
    ) -> Update:
        """Return a new update, paid for and stored, but not committed.

        Raises:
            RefusedError: the budget refuses, or an update was committed for this request and is not in store any more:
                a second one would be another release.
        """
        if isinstance(plan, PrivacyPlan):
            committed = spending.reserve(request.work, plan, model=request.model.hash())
            if committed is not None and self._keep_updates:
                raise RefusedError(
                    RefusalCode.UPDATE_LOST,
                    f"round {request.round}: its update was committed and is not in {self._folder} any more; "
                    "the server has to go on with another round",
                )
        cohort = self.data().train
        if isinstance(plan, PrivacyPlan):
            cohort = _only(cohort, spending.may_sample(request.work, cohort.patients))
        started = time.perf_counter(), time.process_time()
        local, randomness = self._local(request), OneDraw(self._randomness(request))
        stop_at = None if self._max_runtime_s is None else time.monotonic() + self._max_runtime_s
        result = self._models.batch.fit(
            lambda records: train_round(
                model,
                cohort,
                weights,
                local,
                sharing=request.sharing,
                plan=plan,
                learning=request.learning,
                basis=basis,
                randomness=randomness,
                physical_records=records,
                stop_at=stop_at,
            )
        )
        elapsed = time.perf_counter() - started[0], time.process_time() - started[1]
        self._keep_local(request, result)
        update = self._update(request, plan, result, spending.history(request.run_id))
        self._store(request, update)
        self._write_diary(request, model, cohort, elapsed)
        return update

    def _update(
        self, request: TrainRequest, plan: Plan, result: Round, history: tuple[Release, ...]
    ) -> Update:
        """Return the update with this site's claim."""
        kind: ClaimKind = "none"
        if isinstance(plan, PrivacyPlan):
            kind = "dp" if plan.randomness == "os" else "seeded"
        claim = Claim(
            site=self.name,
            unit=plan.unit if isinstance(plan, PrivacyPlan) else "patient",
            delta=plan.delta if isinstance(plan, PrivacyPlan) else 0.0,
            kind=kind,
            releases=history,
        )
        return Update(
            site=self.name,
            run_id=request.run_id,
            round=request.round,
            base_hash=request.base_hash,
            update_hash=hash_weights(result.delta),
            claim=claim,
            delta=result.delta,
        )

    def _stored(self, request: TrainRequest, expected: Signature) -> Update | None:
        """Return the update stored for exactly this request."""
        path = _run_folder(self._folder, request.run_id) / "update.safetensors"
        if not self._keep_updates or not path.exists():
            return None
        delta, facts = load(path, expected)
        if facts.get("key") != request.key:
            return None
        return Update(
            site=self.name,
            run_id=request.run_id,
            round=request.round,
            base_hash=request.base_hash,
            update_hash=facts["update_hash"],
            claim=Claim.from_json(facts["claim"]),
            delta=delta,
        )

    def _store(self, request: TrainRequest, update: Update) -> None:
        """Keep the update of the latest request."""
        if self._keep_updates:
            path = _run_folder(self._folder, request.run_id) / "update.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = {"key": request.key, "update_hash": update.update_hash, "claim": update.claim.to_json()}
            save(path, update.delta, facts)

    def _local(self, request: TrainRequest) -> Weights:
        """Return this site's own parameters as the round before left them."""
        return local_weights(self._folder, request, request.round - 1)

    def _keep_local(self, request: TrainRequest, result: Round) -> None:
        """Keep this round's own parameters; those of earlier rounds stay, since a round may be asked for again."""
        if result.local:
            path = _local_path(self._folder, request.run_id, request.round)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, result.local, {"round": str(request.round)})

    def _write_diary(
        self, request: TrainRequest, model: nn.Module, cohort: Cohort, elapsed: tuple[float, float]
    ) -> None:
        """Append one line about the round to the site's own diary."""
        if not self._diary:
            return
        losses = self._models.batch.fit(
            lambda records: local_losses(
                model, cohort, kl_weight=request.learning.kl_weight, physical_records=records
            )
        )
        line = {
            "run": request.run_id,
            "round": request.round,
            "wall_s": elapsed[0],
            "cpu_s": elapsed[1],
            "process": os.getpid(),
            **losses,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "diary.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def local_weights(folder: Path, request: TrainRequest, round_: int) -> Weights:
    """Return a site's own parameters as they were after a round, or their public initial values.

    Args:
        folder: The site's folder.
        request: Any request of the run.
        round_: The last round to look at; a site that missed it has those of the round before, and so on.

    Raises:
        WeightsError: the stored file is not what was stored.
    """
    if request.sharing == "all":
        return {}  # nothing stays at the site, so no model need be built to find out
    built = build(request.model, seed=request.initial_seed)
    shared = built.shared_names(request.sharing)
    fresh = to_numpy(built, sorted(name for name, _ in built.named_parameters() if name not in shared))
    for earlier in range(round_, 0, -1) if fresh else ():
        path = _local_path(folder, request.run_id, earlier)
        if path.exists():
            return load(path, signature(fresh))[0]
    return fresh


def _local_path(folder: Path, run_id: str, round_: int) -> Path:
    """Return where a site keeps its own parameters after a round."""
    return _run_folder(folder, run_id) / f"local-{round_:05d}.safetensors"


def _run_folder(folder: Path, run_id: str) -> Path:
    """Return a run's folder; run ids come from outside, so the name is a digest."""
    return folder / hashlib.sha256(run_id.encode()).hexdigest()[:16]


def _only(cohort: Cohort, allowed: Sequence[bool]) -> Cohort:
    """Return the patients that may be sampled."""
    return cohort if all(allowed) else cohort.select(np.flatnonzero(allowed))


def dummy_batch(model: ModelSpec) -> Batch:
    """Return made-up records of the model's shape, for checks that must not touch data."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        values=torch.rand(4, *model.input_shape, generator=generator),
        covariates=torch.rand(4, model.num_covariates, generator=generator),
        patient=torch.arange(4),
        num_patients=4,
    )
