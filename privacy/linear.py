"""Patient-level release of the mean and the spread of a cohort: what a linear model (PCA) needs, and no more.

Two sums over patients with the Gaussian mechanism, each divided by a public number and rounded to a public grid:

    mean    (sum_p mean_r clip(y_pr - c, R) + N(0, (sigma R)^2)) / n
    spread  (sum_p mean_r u_pr u_pr^T + E) / n,    u_pr = clip(y_pr - c, R'),    E symmetric, from N(0, (sigma' R'^2)^2)

y = B x are the coordinates of a record on a public basis, or x itself; c is a centre that is public or was released
before. With one public centre both are one shot. With the released mean as the centre of the spread R' can be small,
and composition does not mind: all parameters are fixed in advance.

Guarantees (tests/unit/privacy/test_linear.py, tests/statistical/test_linear_noise.py):
    - One patient, whatever the number and values of the records, moves the first sum by at most R (L2) and the second
      by at most R'^2 (Frobenius). A patient with a value that is not finite contributes zero.
    - `LinearPlan.releases` are the parameters of what is released.

What it does not do: aggregate, diagonalise (both are post-processing), or write down the cost.

References:
    Dwork, Talwar, Thakurta, Zhang 2014, "Analyze Gauss", algorithm 1 (the mechanism); Dwork & Roth 2014, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.accounting import NEIGHBOURINGS, Neighbouring, Release, calibrate_noise
from privacy.errors import PlanError
from privacy.fields import choice_problem, integer_problem, number_problem
from privacy.noise import Randomness, grid_spacing, round_to_grid
from privacy.plan import RandomnessKind
from privacy.training import Patients

FloatArray = npt.NDArray[np.float64]

MAX_COORDINATES = 4096
"""Most coordinates of a spread: its matrix has their square, and its noise grows with their root."""

_PATIENTS_AT_ONCE = 64
_ORTHONORMAL = 1e-6


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """The public constants of both releases; nothing else may set clip, noise or divisor.

    Attributes:
        mean_noise_multiplier: sigma of the mean [in units of mean_norm], > 0.
        spread_noise_multiplier: sigma' of the spread [in units of spread_norm^2], > 0.
        mean_norm: R, L2 norm to which a record minus the centre is clipped for the mean [intensity], > 0.
        spread_norm: R', the same for the spread, > 0.
        num_patients: n that divides both sums, > 0: a public constant, never a count.
        max_records_per_patient: Cap on a patient's records, >= 1; a random subset of them above it.
        neighbouring: Of which relation epsilon is.
        randomness: `os`, or `seeded` for tests and simulation: then no privacy is claimed.
    """

    mean_noise_multiplier: float
    spread_noise_multiplier: float
    mean_norm: float
    spread_norm: float
    num_patients: float
    max_records_per_patient: int = 8
    neighbouring: Neighbouring = "add_remove"
    randomness: RandomnessKind = "os"

    def __post_init__(self) -> None:
        numbers = (
            "mean_noise_multiplier",
            "spread_noise_multiplier",
            "mean_norm",
            "spread_norm",
            "num_patients",
        )
        rule = "a finite number > 0"
        problems = [
            *(
                problem
                for name in numbers
                for problem in number_problem(name, getattr(self, name), low=0, high=math.inf, rule=rule)
            ),
            *integer_problem("max_records_per_patient", self.max_records_per_patient, low=1),
            *choice_problem("neighbouring", self.neighbouring, choices=NEIGHBOURINGS),
            *choice_problem("randomness", self.randomness, choices=("os", "seeded")),
        ]
        if problems:
            raise PlanError("linear plan", problems)

    def releases(self) -> tuple[Release, Release]:
        """Return the events of mean and spread: everybody takes part, once in each."""
        mean, spread = (
            Release(sampling_probability=1.0, noise_multiplier=noise, steps=1, neighbouring=self.neighbouring)
            for noise in (self.mean_noise_multiplier, self.spread_noise_multiplier)
        )
        return mean, spread

    @property
    def spread_noise(self) -> float:
        """Return the standard deviation of the noise off the diagonal of a released spread [intensity^2]."""
        return self.spread_noise_multiplier * self.spread_norm**2 / self.num_patients / math.sqrt(2)


def split_noise(noise_multiplier: float, *, mean_share: float) -> tuple[float, float]:
    """Return the noise multipliers of mean and spread that cost together what one release would.

    sigma_mean = sigma / sqrt(share), sigma_spread = sigma / sqrt(1 - share): two Gaussian mechanisms compose to
    one with 1 / sigma^2 = 1 / sigma_mean^2 + 1 / sigma_spread^2, exactly.

    Args:
        noise_multiplier: sigma > 0 of the one release.
        mean_share: Share of the budget that the mean gets, in (0, 1); a public constant.

    Raises:
        PlanError: the share is not in (0, 1).

    Guarantees:
        Both accountants give the pair the epsilon of the one (tests/unit/privacy/test_linear.py).

    References:
        Dong, Roth, Su 2022, arXiv:1905.02383, corollary 3.3.
    """
    if not 0.0 < mean_share < 1.0:
        raise PlanError("linear plan", [f"mean_share must be a number in (0, 1), got {mean_share!r}"])
    return noise_multiplier / math.sqrt(mean_share), noise_multiplier / math.sqrt(1.0 - mean_share)


def calibrate_linear(
    *, epsilon: float, delta: float, mean_share: float, neighbouring: Neighbouring = "add_remove"
) -> tuple[float, float]:
    """Return the noise multipliers of mean and spread that spend a target epsilon together, and not more.

    Args:
        epsilon: Target of both releases, > 0.
        delta: In (0, 1).
        mean_share: As in `split_noise`.
        neighbouring: Of which relation epsilon is.

    Raises:
        PlanError: an argument is out of range.
    """
    one = calibrate_noise(
        epsilon=epsilon, delta=delta, sampling_probability=1.0, steps=1, neighbouring=neighbouring
    )
    return split_noise(one, mean_share=mean_share)


def release_mean(
    patients: Patients,
    *,
    plan: LinearPlan,
    centre: FloatArray,
    basis: FloatArray | None = None,
    randomness: Randomness,
) -> FloatArray:
    """Return the noisy mean of the patients' coordinates.

    Shapes: d values of a record, k0 rows of the basis (without one k0 = d).

    Args:
        patients: The cohort of the site.
        plan: Sets clip, noise and divisor.
        centre: c, [d], public: what is known of a record before its data are seen.
        basis: B, [k0, d] with orthonormal rows, public; None: the identity.
        randomness: A fresh object for each release; its kind has to be the plan's.

    Returns:
        [k0] float64: B c plus the noisy mean of the clipped differences.

    Raises:
        PlanError: centre, basis or randomness do not fit.

    Guarantees:
        See the module docstring.
    """
    _check(plan, centre, basis, randomness)
    total: FloatArray = np.zeros(len(centre if basis is None else basis))
    for rows, weights in _clipped(
        patients, plan, norm=plan.mean_norm, centre=centre, basis=basis, randomness=randomness, purpose="mean"
    ):
        total += weights @ rows
    scale = plan.mean_noise_multiplier * plan.mean_norm
    noise = randomness.stream("linear-mean-noise").normal(total.size)
    spacing = grid_spacing(
        noise_multiplier=plan.mean_noise_multiplier, max_grad_norm=plan.mean_norm, divisor=plan.num_patients
    )
    start = centre if basis is None else basis @ centre
    return np.asarray(start + round_to_grid((total + scale * noise) / plan.num_patients, spacing))


def release_spread(
    patients: Patients,
    *,
    plan: LinearPlan,
    centre: FloatArray,
    basis: FloatArray | None = None,
    randomness: Randomness,
) -> FloatArray:
    """Return the noisy second moment of the patients' coordinates about a centre.

    Noise is drawn for the k0 (k0 + 1) / 2 coordinates (M_ii, sqrt(2) M_ij), whose L2 norm is the Frobenius norm of M:
    standard deviation sigma' R'^2 / n on the diagonal, that over sqrt(2) off it.

    Args:
        patients: The cohort of the site.
        plan: Sets clip, noise and divisor.
        centre: c, [d]: public, or made of what was released.
        basis: As in `release_mean`.
        randomness: As in `release_mean`; the same object may serve both.

    Returns:
        [k0, k0] float64, symmetric; not positive semi-definite where noise prevails.

    Raises:
        PlanError: centre, basis or randomness do not fit, or there are more than `MAX_COORDINATES` coordinates.

    Guarantees:
        See the module docstring.
    """
    _check(plan, centre, basis, randomness)
    size = len(centre if basis is None else basis)
    if size > MAX_COORDINATES:
        rule = f"a spread of {size} coordinates is too large; give a public basis of at most {MAX_COORDINATES} rows"
        raise PlanError("linear plan", [rule])
    total: FloatArray = np.zeros((size, size))
    for rows, weights in _clipped(
        patients,
        plan,
        norm=plan.spread_norm,
        centre=centre,
        basis=basis,
        randomness=randomness,
        purpose="spread",
    ):
        weighted = rows * np.sqrt(weights)[:, None]
        total += weighted.T @ weighted
    upper = np.triu_indices(size)
    scale = plan.spread_noise_multiplier * plan.spread_norm**2
    shrink = np.where(upper[0] == upper[1], 1.0, 1.0 / math.sqrt(2))
    noise = randomness.stream("linear-spread-noise").normal(len(shrink)) * shrink
    spacing = grid_spacing(
        noise_multiplier=plan.spread_noise_multiplier,
        max_grad_norm=plan.spread_norm**2,
        divisor=plan.num_patients,
    )
    found: FloatArray = np.zeros((size, size))
    found[upper] = round_to_grid((total[upper] + scale * noise) / plan.num_patients, spacing)
    return np.asarray(found + np.triu(found, 1).T)


def _clipped(
    patients: Patients,
    plan: LinearPlan,
    *,
    norm: float,
    centre: FloatArray,
    basis: FloatArray | None,
    randomness: Randomness,
    purpose: str,
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield (clipped rows [B, k0], weights [B]) of some patients at a time; weights of one patient sum to 1 or 0."""
    chooser = randomness.stream(f"linear-{purpose}-records").generator()
    for start in range(0, patients.num_patients, _PATIENTS_AT_ONCE):
        chosen = np.arange(start, min(start + _PATIENTS_AT_ONCE, patients.num_patients), dtype=np.int64)
        batch = patients.batch(chosen, max_records=plan.max_records_per_patient, rng=chooser)
        owner = batch.patient.numpy()
        values = batch.values.flatten(1).numpy().astype(np.float64)
        # Of a patient with one value that is no number nothing counts: half a patient would still be bounded, but
        # whether a record was left out would then show in the others' weight.
        lost = np.bincount(owner, ~np.isfinite(values).all(axis=1), minlength=batch.num_patients) > 0
        values[lost[owner]] = 0.0
        rows = values - centre if basis is None else (values - centre) @ basis.T
        length = np.sqrt(np.einsum("bk,bk->b", rows, rows))
        rows *= np.minimum(1.0, norm / np.maximum(length, np.finfo(np.float64).tiny))[:, None]
        weights = np.where(lost, 0.0, 1.0 / np.bincount(owner, minlength=batch.num_patients))
        yield rows, weights[owner]


def _check(plan: LinearPlan, centre: FloatArray, basis: FloatArray | None, randomness: Randomness) -> None:
    """Refuse what does not fit, before any record is read."""
    problems = []
    if randomness.kind != plan.randomness:
        problems.append(f"randomness is {plan.randomness!r}, but {randomness.kind!r} was given")
    if centre.ndim != 1 or not np.isfinite(centre).all():
        problems.append(f"centre must be [d] finite numbers, got shape {list(centre.shape)}")
    elif basis is not None and (basis.ndim != 2 or basis.shape[1] != len(centre)):
        problems.append(f"basis must be [k0, {len(centre)}], got shape {list(basis.shape)}")
    elif basis is not None and not _is_orthonormal(basis):
        problems.append("basis must have orthonormal rows; orthogonalise it first")
    if problems:
        raise PlanError("linear plan", problems)


def _is_orthonormal(basis: FloatArray) -> bool:
    """Return whether B B^T is the identity."""
    gram = basis @ basis.T
    return bool(np.isfinite(gram).all() and np.abs(gram - np.eye(len(basis))).max() < _ORTHONORMAL)
