"""The virtual hospitals of an experiment: their data, and the `Site` objects that answer for them.

The site `pooled` holds all training patients together: it exists in a simulation only, for the centralised arm.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp

from client.app import make_app
from client.contract import Plan, TrainRequest
from deploy.config import Experiment
from deploy.sources import DicomData, NiftiData, TableData
from privacy.accounting import Release
from privacy.noise import Randomness, SeededRandomness
from privacy.unsafe import UnsafeWarning
from vae.data.cohort import Cohort, SiteData, concatenate

if TYPE_CHECKING:
    from client.site import Site

POOLED = "pooled"


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
    return hold_out(_open_cohort(data, site, cache), data.held_out)


def hold_out(cohort: Cohort, share: float) -> SiteData:
    """Split a hospital's cohort by patient; with an `anomaly` label only normal patients are trained on."""
    train, test = cohort.split(share, salt="held out")
    if "anomaly" in train.labels:
        train = train.where(train.labels["anomaly"] == 0)
    else:
        test = Cohort(
            **{
                **{name: getattr(test, name) for name in ("name", "values", "offsets", "patients")},
                "covariates": test.covariates,
                "covariate_names": test.covariate_names,
                "labels": {**test.labels, "anomaly": np.zeros(test.num_records, np.float32)},
            }
        )
    return SiteData(train=train, test=test)


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
        DataError: some site's data cannot be used.
    """
    names = experiment.site_names
    if experiment.data.kind not in ("toy", "abide") and workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool_:
            text = experiment.model_dump_json()
            for site in pool_.map(_prepare_one, [text] * len(names), names, [cache] * len(names)):
                if progress is not None:
                    progress(site)
    opened: dict[str, SiteData] = {}
    for site in names:
        opened[site] = open_site(experiment, site, cache)
    return opened


def _prepare_one(text: str, site: str, cache: Path) -> str:
    """Fill the cache for one site, in a process of its own."""
    import torch

    torch.set_num_threads(1)
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

    return open_table(data.to_specs()[site], name=site)[0]


class SimulatedSpending:
    """What a virtual site has spent in a run: a file that survives a kill, without the cost of a flush to disk.

    Implements `privacy.claim.Spending`. A simulation has no budget to protect; a hospital's record is another class.

    Args:
        path: JSON lines, one a reservation.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Release] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a line torn by a kill: the round runs again and writes it anew
                self._entries[entry["key"]] = Release.from_dict(entry["release"])

    def reserve(self, key: str, release: Release) -> None:
        """Write the cost; the same key twice is one cost."""
        if key not in self._entries:
            self._entries[key] = release
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "release": release.to_dict()}) + "\n")

    def commit(self, key: str, steps_done: int) -> None:
        """Nothing to write: a simulated round does all its steps, or the run ends."""

    def history(self) -> tuple[Release, ...]:
        """Return everything spent, in order."""
        return tuple(self._entries.values())


@dataclass(frozen=True, kw_only=True)
class VirtualSites:
    """Connects a ClientApp to virtual sites; a picklable value, so that it can be sent to a worker or a Ray actor.

    Attributes:
        experiment: The experiment as JSON.
        sites: Names by partition: Ray knows a node by its number alone.
        folder: Where the sites keep what they keep.
        cache: Prepared data.
    """

    experiment: str
    sites: tuple[str, ...]
    folder: Path
    cache: Path

    def __call__(self, context: Context) -> Site:
        """Return the site behind a node, made at its first message in this process."""
        name = context.node_config.get("site")
        if name is None:
            name = self.sites[int(context.node_config["partition-id"])]
        key = (str(self.folder), str(name))
        if key not in _OPEN:
            _OPEN[key] = self._make(str(name))
        return _OPEN[key]

    def app(self) -> ClientApp:
        """Return a ClientApp over these sites."""
        return make_app(self)

    def _make(self, name: str) -> Site:
        """Return a virtual site."""
        from client.site import Site

        expect_unsafe_arms()
        experiment = Experiment.model_validate_json(self.experiment)
        folder = self.folder / name
        spending: dict[str, SimulatedSpending] = {}

        def open_data() -> SiteData:
            if name == POOLED:
                return pool({site: open_site(experiment, site, self.cache) for site in experiment.site_names})
            return open_site(experiment, name, self.cache)

        def randomness(request: TrainRequest) -> Randomness:
            return SeededRandomness(experiment.seed, request.run_id, name, request.round)

        def spent(run_id: str) -> SimulatedSpending:
            return spending.setdefault(run_id, SimulatedSpending(folder / f"spent-{run_id}.jsonl"))

        return Site(
            name,
            open_data=open_data,
            folder=folder,
            decide=as_asked,
            randomness=randomness,
            spending=spent,
            keep_updates=False,
        )


def expect_unsafe_arms() -> None:
    """Keep this process quiet about training without privacy: a simulation compares with it, and its report says so."""
    warnings.filterwarnings("ignore", category=UnsafeWarning)


def as_asked(request: TrainRequest) -> Plan:
    """Decide as a virtual site does: it has no policy of its own."""
    return request.plan


_OPEN: dict[tuple[str, str], Site] = {}
