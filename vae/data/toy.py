"""A toy table, for smoke runs and benchmarks: a few Gaussian factors seen through many columns.

Every normal record is `A f + c b + 0.3 e`: the same mixing matrix A at every site, a few factors f of the
record's patient (visits of one patient share most of them), covariates c where there are any, noise e. An
anomalous record breaks the rule that joins the columns: it is a normal one with its columns in another order,
so that each column alone looks almost normal. What it does not do: resemble a hospital.

Guarantees: a site's data depend on the seed and the site's index only, not on how many sites there are
(tests/unit/deploy/test_toy.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from vae.data.cohort import Cohort, FloatArray, SiteData
from vae.errors import DataError

_FACTORS = 3
_NOISE = 0.3
_VISIT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class ToySpec:
    """How much toy data there is.

    Attributes:
        sites: Number of sites, >= 1.
        patients_per_site: Patients to train on, >= 2; half as many again, two at least, are normal test
            patients, and as many are anomalous.
        records: Fewest and most records of a patient, >= 1.
        features: Columns F, >= 2.
        covariates: Columns K of covariates, >= 0.
        seed: Root of all randomness, >= 0.

    Raises:
        DataError: at construction, naming every problem at once.
    """

    sites: int = 3
    patients_per_site: int = 32
    records: tuple[int, int] = (1, 3)
    features: int = 8
    covariates: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        fewest, most = self.records
        problems = [
            text
            for broken, text in (
                (self.sites < 1, f"sites is {self.sites}, must be >= 1"),
                (self.patients_per_site < 2, f"patients_per_site is {self.patients_per_site}, must be >= 2"),
                (
                    not 1 <= fewest <= most,
                    f"records is {self.records}, must be (fewest, most), 1 <= fewest <= most",
                ),
                (self.features < 2, f"features is {self.features}, must be >= 2"),
                (self.covariates < 0, f"covariates is {self.covariates}, must be >= 0"),
                (self.seed < 0, f"seed is {self.seed}, must be >= 0"),
            )
            if broken
        ]
        if problems:
            raise DataError("toy: " + "; ".join(problems))


@functools.lru_cache(maxsize=16)
def site_names(spec: ToySpec) -> tuple[str, ...]:
    """Return the sites' names, `site-1` to `site-N`; position i is `site=i` of `open_toy`."""
    return tuple(f"site-{index + 1}" for index in range(spec.sites))


def open_toy(spec: ToySpec, site: int) -> SiteData:
    """Return one site's patients.

    Test patients carry `labels["anomaly"]` [R] float32 in {0, 1}; there is no reference cohort.

    Args:
        spec: How much there is.
        site: 0-based index.

    Raises:
        ValueError: there is no such site.
    """
    if not 0 <= site < spec.sites:
        raise ValueError(f"toy: site must be in 0..{spec.sites - 1}, got {site}")
    name = site_names(spec)[site]
    rng = np.random.default_rng([spec.seed, 1, site])
    train = _cohort(spec, name, spec.patients_per_site, rng, anomalous=0)
    held_out = max(2, spec.patients_per_site // 2)
    return SiteData(train=train, test=_cohort(spec, f"{name} test", 2 * held_out, rng, anomalous=held_out))


def _cohort(spec: ToySpec, name: str, patients: int, rng: np.random.Generator, *, anomalous: int) -> Cohort:
    """Return a cohort whose last `anomalous` patients break the rule."""
    count = rng.integers(spec.records[0], spec.records[1] + 1, size=patients)
    owner = np.repeat(np.arange(patients), count)
    factors = rng.standard_normal((patients, _FACTORS))[owner]
    factors = np.sqrt(1 - _VISIT_SHARE) * factors + np.sqrt(_VISIT_SHARE) * rng.standard_normal(factors.shape)
    covariates = rng.uniform(-1, 1, (patients, spec.covariates))[owner]
    mixing, effect = _constants(spec)
    values = (
        factors @ mixing + covariates @ effect + _NOISE * rng.standard_normal((len(owner), spec.features))
    )
    anomaly = owner >= patients - anomalous
    values[anomaly] = rng.permuted(values[anomaly], axis=1)
    return Cohort.from_records(
        name=name,
        patients=[f"{name} {index:06d}" for index in owner],
        values=values.astype(np.float32),
        covariates=covariates.astype(np.float32),
        covariate_names=tuple(f"covariate-{index + 1}" for index in range(spec.covariates)),
        labels={"anomaly": anomaly.astype(np.float32)},
    )


def _constants(spec: ToySpec) -> tuple[FloatArray, FloatArray]:
    """Return the mixing matrix [factors, F] and the covariates' effect [K, F], the same at every site."""
    rng = np.random.default_rng([spec.seed, 0])
    mixing = rng.standard_normal((_FACTORS, spec.features)) / np.sqrt(_FACTORS)
    return mixing.astype(np.float32), rng.standard_normal((spec.covariates, spec.features)).astype(np.float32)
