"""The virtual hospitals of an experiment: their data, and the `Site` objects that answer for them.

The site `POOLED` holds all training patients together: it exists in a simulation only, for the centralised arm. Its
name is none that a configuration accepts for a hospital.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.app import make_app
from client.contract import Plan, TrainRequest
from deploy.config import Experiment
from deploy.errors import EngineError
from deploy.simulation.ledgers import ledger_path, open_spending
from deploy.simulation.workers import interrupts_kept
from deploy.sources import DicomData, NiftiData, OwnData, TableData
from privacy.accounting import Release, merge_releases
from privacy.budget import Spending
from privacy.errors import RefusalCode
from privacy.heads import Head, Receipt
from privacy.ledger import Ledger
from privacy.noise import Randomness, SeededRandomness
from privacy.plan import PrivacyPlan
from privacy.records import Work
from privacy.unsafe import UnsafeWarning
from vae.data.cohort import Cohort, SiteData, concatenate
from vae.data.intake import QUARANTINE_NAME
from vae.errors import DataError

if TYPE_CHECKING:
    from client.device import Device
    from client.site import Models, Site

POOLED = "_pooled"


def open_site(experiment: Experiment, site: str, cache: Path) -> SiteData:
    """Return one hospital's cohorts (from the cache where it was prepared before).

    Raises:
        DataError: the data cannot be used.
    """
    data = experiment.data
    if data.kind == "phantom":
        from vae.data.phantom.generate import open_phantom

        return open_phantom(data.to_spec(), site=experiment.site_names.index(site), cache=cache)
    if data.kind == "toy":
        from vae.data.toy import open_toy

        return open_toy(data.to_spec(), site=experiment.site_names.index(site))
    if data.kind == "abide":
        from vae.data.abide import open_abide

        return open_abide(data.to_spec(), cache=cache)[site]
    return hold_out(_open_cohort(data, site, cache / site), data.held_out)


def hold_out(cohort: Cohort, share: float) -> SiteData:
    """Split a hospital's cohort by patient into those to train on and those to judge on.

    With a label `anomaly` (0 or 1), a patient with any anomalous record is never trained on and always judged on, and
    `share` of the others are held out; a record without a value is used for neither. Without the label nobody counts
    as anomalous.

    Raises:
        DataError: the label holds something else, or there are too few patients without anomaly.
    """
    if "anomaly" not in cohort.labels:
        labels = {**cohort.labels, "anomaly": np.zeros(cohort.num_records, np.float32)}
        train, test = replace(cohort, labels=labels).split(share, salt="held out")
        return SiteData(train=train, test=test)
    label = cohort.labels["anomaly"]
    if label.dtype != np.float32 or not (np.isin(label, (0.0, 1.0)) | np.isnan(label)).all():
        raise DataError(f"{cohort.name}: column `anomaly` must hold 0 (normal) or 1 (anomalous), or be empty")
    labelled = cohort.where(np.isin(label, (0.0, 1.0)))
    anomalous = np.maximum.reduceat(labelled.labels["anomaly"], labelled.offsets[:-1]) == 1
    if anomalous.all():
        raise DataError(
            f"{cohort.name}: no patient is normal (`anomaly` 0 in every record): nobody to train on"
        )
    train, _ = labelled.select(np.flatnonzero(~anomalous)).split(share, salt="held out")
    rest = np.flatnonzero(~np.isin(labelled.patients, train.patients))
    return SiteData(train=train, test=labelled.select(rest))


def pool(sites: dict[str, SiteData]) -> SiteData:
    """Return all sites' cohorts as one, for the centralised arm."""
    references = [data.reference for data in sites.values() if data.reference is not None]
    return SiteData(
        train=concatenate([data.train for data in sites.values()], name=POOLED),
        test=concatenate([data.test for data in sites.values()], name=POOLED),
        reference=concatenate(references, name=POOLED) if len(references) == len(sites) else None,
    )


def prepare(
    experiment: Experiment, cache: Path, *, workers: int, progress: Callable[[str], None] | None = None
) -> dict[str, SiteData]:
    """Return every hospital's cohorts, making or decoding what is not in the cache yet, `workers` at a time.

    Raises:
        DataError: some site's data cannot be used, or do not fit the others'.
        EngineError: a process was killed.
    """
    names = experiment.site_names
    if experiment.data.kind in ("phantom", "nifti", "dicom") and workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool_:
            try:
                text = experiment.model_dump_json()
                with interrupts_kept():
                    made = pool_.map(_prepare_one, [text] * len(names), names, [cache] * len(names))
                for site in made:
                    if progress is not None:
                        progress(site)
            except BrokenProcessPool as error:
                raise EngineError(
                    "a process that prepared data has ended: out of memory? try engine.workers=1"
                ) from error
            except BaseException:
                for child in active_children():  # or the end of the block would wait for what they do
                    child.terminate()
                raise
    opened = {site: open_site(experiment, site, cache) for site in names}
    _require_alike(opened)
    return opened


def refused_records(experiment: Experiment, cache: Path) -> dict[str, dict[str, int]]:
    """Return site -> reason -> how many of its records were refused when it was opened last, if any.

    Args:
        experiment: Whose sites.
        cache: Prepared data.
    """
    if not isinstance(experiment.data, OwnData):
        return {}
    refused: dict[str, dict[str, int]] = {}
    for site in experiment.site_names:
        path = cache / site / QUARANTINE_NAME
        reasons = [line.split("\t")[0] for line in path.read_text().splitlines()] if path.exists() else []
        if reasons:
            refused[site] = dict(sorted(Counter(reasons).items()))
    return refused


def _require_alike(sites: Mapping[str, SiteData]) -> None:
    """Refuse sites whose records do not fit one model."""
    first, *others = sites
    expected = sites[first].train
    for site in others:
        found = sites[site].train
        if found.record_shape != expected.record_shape:
            raise DataError(
                f"{site}: its records have shape {found.record_shape}, those of {first} {expected.record_shape}; one "
                "model needs one shape: give every site the same features, or the same preparation and suffixes"
            )
        if found.covariate_names != expected.covariate_names:
            raise DataError(
                f"{site}: its covariates are {found.covariate_names}, those of {first} {expected.covariate_names}; "
                "one model needs the same ones, in one order"
            )


def _prepare_one(text: str, site: str, cache: Path) -> str:
    """Fill the cache for one site, in a process of its own; bad data are found again, and told, by who opens them."""
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(DataError):
        open_site(Experiment.model_validate_json(text), site, cache)
    return site


def _open_cohort(data: NiftiData | DicomData | TableData, site: str, cache: Path) -> Cohort:
    """Return a hospital's own files as a cohort."""
    if data.kind == "nifti":
        from vae.data.nifti import open_nifti

        return open_nifti(data.to_specs()[site], name=site, cache=cache)[0]
    if data.kind == "dicom":
        from vae.data.dicom import open_dicom

        return open_dicom(data.to_specs()[site], name=site, cache=cache)[0]
    from vae.data.tabular import open_table

    return open_table(data.to_specs()[site], name=site, cache=cache)[0]


class SimulatedSpending:
    """What a virtual site has spent in a run: a file that survives a kill, without the cost of a flush to disk.

    Implements `privacy.budget.Spending` where an experiment gives its hospitals no budget: nothing is refused.

    Args:
        path: JSON lines, one a reservation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: set[str] = set()
        self._history: tuple[Release, ...] = ()
        text = path.read_text() if path.exists() else ""
        self._torn = bool(text) and not text.endswith("\n")
        for key, release in _entries(text):
            self._note(key, release)

    def check(self, heads: Iterable[Head]) -> None:
        """Nobody has seen a head of what is no ledger."""

    def reserve(self, work: Work, plan: PrivacyPlan, *, model: str) -> str | None:
        """Write the cost; the same work twice is one cost."""
        key, release = f"{work.run}/{work.round}/{work.base}", plan.release()
        if key not in self._keys:
            self._note(key, release)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, "release": release.to_dict()}) + "\n"
            with self._path.open("a") as file:
                file.write("\n" + line if self._torn else line)  # never onto a torn line: both would be lost
            self._torn = False
        return None

    def commit(self, work: Work, steps: int, update: str) -> None:
        """Nothing to write: a simulated round does all its steps, or the run ends."""

    def refuse(self, work: Work, code: RefusalCode) -> None:
        """Nothing to write: virtual sites without a budget refuse nothing."""

    def may_sample(self, work: Work, patients: Sequence[str]) -> Sequence[bool]:
        """Return that everybody may be sampled."""
        return [True] * len(patients)

    def history(self, run: str) -> tuple[Release, ...]:
        """Return everything spent, in order, neighbours of equal parameters joined as a claim joins them."""
        return self._history

    def receipt(self, work: Work, heads: Sequence[Head]) -> Receipt | None:
        """Return nothing: there is no ledger."""
        return None

    def witness(self, heads: Iterable[Head]) -> tuple[Head, ...]:
        """Keep nothing."""
        return ()

    def _note(self, key: str, release: Release) -> None:
        """Add a cost to the history; joined at once, so that round 1,000 costs no more time than round 1."""
        if key not in self._keys:
            self._keys.add(key)
            self._history = merge_releases((*self._history, release))


def spent_by_round(
    folder: Path, site: str, run_id: str, ledger: Path | None = None
) -> list[tuple[int, Release]]:
    """Return (round, cost) of everything that a virtual site has spent in a run, in order.

    Args:
        folder: Of all sites.
        site: Its name.
        run_id: Names the run.
        ledger: Of the site, if it has one.
    """
    if ledger is not None:
        if not ledger.exists():
            return []
        paid = Ledger.open(ledger).state().reservations.items()
        return [(work.round, release) for work, one in paid if work.run == run_id for release in one.cost]
    path = _spent_path(folder / site, run_id)
    return [
        (int(key.split("/")[-2]), release)
        for key, release in dict(_entries(path.read_text() if path.exists() else "")).items()
    ]


def _spent_path(folder: Path, run_id: str) -> Path:
    """Return where a site's spending in a run lies."""
    return folder / f"spent-{run_id}.jsonl"


def _entries(text: str) -> Iterator[tuple[str, Release]]:
    """Yield (key, cost) of each line; one torn by a kill is passed over: its round runs again and writes it anew."""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            yield entry["key"], Release.from_dict(entry["release"])


@dataclass(frozen=True, kw_only=True)
class VirtualSites:
    """Connects a ClientApp to virtual sites; a picklable value, so that it can be sent to a worker or a Ray actor.

    Attributes:
        experiment: The experiment as JSON.
        sites: Names by partition: Ray knows a node by its number alone. Not hashed, which every message would pay for.
        folder: Where the sites keep what they keep.
        cache: Prepared data.
    """

    experiment: str
    sites: tuple[str, ...] = field(hash=False)
    folder: Path
    cache: Path

    def __call__(self, context: Context) -> Site:
        """Return the site behind a node, made at its first message in this process."""
        name = context.node_config.get("site")
        if name is None:
            name = self.sites[int(context.node_config["partition-id"])]
        key = (self, str(name))
        if key not in _OPEN:
            _OPEN[key] = self._make(str(name))
        return _OPEN[key]

    def close(self) -> None:
        """Let go of the sites that were made in this process, and of their data."""
        for key in [key for key in _OPEN if key[0] == self]:
            del _OPEN[key]

    def app(self) -> ClientApp:
        """Return a ClientApp over these sites."""
        return make_app(self)

    def _make(self, name: str) -> Site:
        """Return a virtual site."""
        from client.site import Site

        expect_unsafe_arms()
        experiment = Experiment.model_validate_json(self.experiment)
        folder = self.folder / name
        spending: dict[str, Spending] = {}
        ledger = None if name == POOLED else ledger_path(experiment, self.folder, name)

        def open_data() -> SiteData:
            if name == POOLED:
                return pool({site: open_site(experiment, site, self.cache) for site in experiment.site_names})
            return open_site(experiment, name, self.cache)

        def randomness(request: TrainRequest) -> Randomness:
            return SeededRandomness(experiment.seed, request.run_id, name, request.round)

        def spent(run_id: str) -> Spending:
            key = run_id if ledger is None else ""  # a ledger is one for all runs
            if key not in spending:  # its file is read once, not at every round
                spending[key] = (
                    SimulatedSpending(_spent_path(folder, run_id))
                    if ledger is None
                    else open_spending(experiment, ledger, name, lambda: site.data().train.patients)
                )
            return spending[key]

        site = Site(
            name,
            open_data=open_data,
            folder=folder,
            decide=as_asked,
            randomness=randomness,
            spending=spent,
            keep_updates=False,
            models=_models(experiment.engine.device),
        )
        return site


def expect_unsafe_arms() -> None:
    """Keep this process quiet about training without privacy: a simulation compares with it, and its report says so."""
    warnings.filterwarnings("ignore", category=UnsafeWarning)


def as_asked(request: TrainRequest) -> Plan:
    """Decide as a virtual site does: it has no policy of its own."""
    return request.plan


@functools.cache
def _models(device: Device) -> Models:
    """Return the models of this process: its virtual sites train one after another, so they share them."""
    from client.site import Models

    return Models(device)


_OPEN: dict[tuple[VirtualSites, str], Site] = {}
