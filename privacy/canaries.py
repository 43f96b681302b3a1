"""Canaries: made-up patients that a coin lets into a cohort, so that an audit can try to guess the coin.

A gradient-space canary is a patient like any other to sampler, engine, noise and optimiser: its records carry the
canary's number in one more covariate column, and `CanaryModule` gives such a record the loss norm * w_j, w_j a weight
that nothing else touches. Its raw gradient is norm * e_j, far beyond C, so what reaches the sum is C e_j *if clipping
works*; its coordinate of the noised mean is C times (sampled or not) plus noise, and nothing else: the most
distinguishable patient there is.

Guarantees:
    - Real patients have zero gradient at canary weights, and canaries at real weights (tests/unit/privacy/
      test_canaries.py): an audit measures the very training that it rides on.
    - Coins and scores come from `privacy.noise` and from noised values alone; torch's generators are not used.

What they do not do: guess (`bounds`), or train (`audit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.accounting import Release
from privacy.bounds import BoolArray, FloatArray
from privacy.clipping import Batch, Gradients
from privacy.errors import IncompatibleModelError
from privacy.noise import KeyStream
from privacy.training import Patients

CANARY_WEIGHTS = "canaries.weight"
"""Name of the canaries' parameter in a `CanaryModule`."""

_NOT_A_CANARY = -1.0
_LARGEST_X = 1e6
_LEAST_NOISE = 1e-6


@dataclass(frozen=True, kw_only=True)
class GradientCanaries:
    """How many canaries, and how they try to break the clip.

    Attributes:
        count: m >= 1, of which about half get in. More see more: 1,000 to 5,000.
        records: Records of each, >= 1. Several, or clipping each record instead of each patient goes unseen.
        norm: Norm of a canary's raw gradient [units of max_grad_norm], > 1, or a missing clip goes unseen. Far above
            those of real patients (of a small VAE up to 900), or a batch averaged before the clip goes unseen.
    """

    count: int = 1000
    records: int = 4
    norm: float = 1e4

    def __post_init__(self) -> None:
        if self.count < 1 or self.records < 1 or not 1.0 < self.norm < float("inf"):
            raise ValueError(
                f"canaries need count >= 1, records >= 1 and a finite norm > 1, got {self.count}, "
                f"{self.records}, {self.norm}"
            )


def flip_coins(stream: KeyStream, count: int) -> BoolArray:
    """Return [count] fair coins: true lets a canary in."""
    return np.asarray(stream.uniform(count) < 0.5, dtype=np.bool_)


class CanaryModule(nn.Module):
    """A module, and one more weight for each canary; its last covariate column is the canary's number, or -1.

    The layer is an `nn.Embedding`, because engines that hook layers (Opacus 1.6) see no bare parameters.
    """

    def __init__(self, module: nn.Module, *, count: int, norm: float) -> None:
        """Wrap `module`, which is used as it is, not copied.

        Args:
            module: `forward(values, covariates, latent_noise, kl_weight)` returns [B].
            count: m >= 1.
            norm: Norm of a canary's raw gradient, > 0 [units of the gradient].

        Raises:
            ValueError: the module's number type is too coarse for m numbers.
        """
        super().__init__()
        like = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        if count > 2.0 / torch.finfo(like.dtype).eps:
            raise ValueError(
                f"{count} canaries cannot be numbered in {like.dtype}; use fewer, or a float32 model"
            )
        self.module = module
        # Given weights, the constructor draws nothing from torch's global generator.
        weights = torch.zeros(count, 1, dtype=like.dtype, device=like.device)
        self.canaries = nn.Embedding(count, 1, _weight=weights)
        self.norm = norm

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        """Return [B]: the module's loss of a real record, norm * w_j of a record of canary j."""
        number = covariates[:, -1]
        is_canary = number >= 0  # false for NaN, which no index may be made of
        index = torch.where(is_canary, number, 0.0).clamp(max=self.canaries.num_embeddings - 1).long()
        real = self.module(values, covariates[:, :-1], latent_noise, kl_weight)
        # No branch on data: the vmap engine could not follow it. The unused side gets gradient zero.
        return torch.where(is_canary, self.norm * self.canaries(index)[:, 0], real)


@dataclass(frozen=True, kw_only=True)
class JoinedBatch:
    """Records of real patients, then of guests; a `Batch` (shapes there)."""

    values: Tensor
    covariates: Tensor
    patient: Tensor
    num_patients: int


@dataclass(frozen=True, kw_only=True, eq=False)
class InsertedPatients:
    """A cohort and the guests that their coins let in, numbered after it; implements `training.Patients`.

    Attributes:
        real: n patients.
        guests: m patients of the same record shape and covariates.
        included: [m], the coins.
    """

    real: Patients
    guests: Patients
    included: BoolArray

    def __post_init__(self) -> None:
        if self.included.shape != (self.guests.num_patients,):
            raise ValueError(
                f"{self.guests.num_patients} guests need as many coins, got {self.included.shape}"
            )

    @property
    def num_patients(self) -> int:
        """Return n plus the number of guests that are in."""
        return self.real.num_patients + int(self.included.sum())

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return the records of some patients, real ones first; see `training.Patients`."""
        first = self.real.num_patients
        is_guest = patients >= first
        present = np.flatnonzero(self.included).astype(np.int64)
        own = self.real.batch(patients[~is_guest], max_records=max_records, rng=rng)
        guests = self.guests.batch(present[patients[is_guest] - first], max_records=max_records, rng=rng)
        return JoinedBatch(
            values=torch.cat([own.values, guests.values.to(own.values)]),
            covariates=torch.cat([own.covariates, guests.covariates.to(own.covariates)]),
            patient=torch.cat([own.patient, guests.patient + own.num_patients]),
            num_patients=own.num_patients + guests.num_patients,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryPatients:
    """A cohort and gradient-space canaries, as `CanaryModule` reads them; implements `training.Patients`.

    Attributes:
        real: n patients, a site's or made up.
        included: [m], the coins.
        records: Records of each canary, >= 1; a plan's cap on records applies to canaries too.
    """

    real: Patients
    included: BoolArray
    records: int

    @property
    def num_patients(self) -> int:
        """Return n plus the number of canaries that are in."""
        return self._joined.num_patients

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return the records of some patients; their last covariate is the canary's number, or -1."""
        return self._joined.batch(patients, max_records=max_records, rng=rng)

    @property
    def _joined(self) -> InsertedPatients:
        canaries = _Canaries(like=self.real, num_patients=len(self.included), records=self.records)
        return InsertedPatients(real=_Marked(real=self.real), guests=canaries, included=self.included)


@dataclass(frozen=True, kw_only=True)
class _Marked:
    """Real patients, marked as such in one more covariate column."""

    real: Patients

    @property
    def num_patients(self) -> int:
        """Return n."""
        return self.real.num_patients

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return the same records with a column of -1."""
        own = self.real.batch(patients, max_records=max_records, rng=rng)
        marks = own.covariates.new_full((own.covariates.shape[0], 1), _NOT_A_CANARY)
        return JoinedBatch(
            values=own.values,
            covariates=torch.cat([own.covariates, marks], dim=1),
            patient=own.patient,
            num_patients=own.num_patients,
        )


@dataclass(frozen=True, kw_only=True)
class _Canaries:
    """Canaries: records of zeros, of the shape and type of `like`'s, that carry their number."""

    like: Patients
    num_patients: int
    records: int

    def batch(
        self,
        patients: npt.NDArray[np.int64],
        *,
        max_records: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return `records` records of each canary, or `max_records` if that is less; they are equal: no `rng`."""
        shape = self.like.batch(np.zeros(0, np.int64))
        each = self.records if max_records is None else min(self.records, max_records)
        number = torch.from_numpy(patients).repeat_interleave(each)
        covariates = shape.covariates.new_zeros((len(number), shape.covariates.shape[1] + 1))
        covariates[:, -1] = number.to(covariates)
        return JoinedBatch(
            values=shape.values.new_zeros((len(number), *shape.values.shape[1:])),
            covariates=covariates,
            patient=torch.arange(len(patients)).repeat_interleave(each),
            num_patients=len(patients),
        )


def log_likelihood_ratio(
    x: FloatArray, *, sampling_probability: float, noise_multiplier: float
) -> FloatArray:
    """Return log(1 - q + q exp((2 x - 1) / (2 sigma^2))): how much one step speaks for a canary being in.

    Args:
        x: [m] canary coordinates of the noised sum [units of max_grad_norm].
        sampling_probability: q in (0, 1].
        noise_multiplier: sigma > 0.

    Returns:
        [m]; finite for any x and sigma: x beyond 1e6 counts as 1e6, sigma below 1e-6 as 1e-6; NaN says
        nothing (0).
    """
    # Any function of what was released is a fair score: a clamp costs no rigour, an overflow the whole audit.
    read = np.clip(np.where(np.isnan(x), 0.5, x), -_LARGEST_X, _LARGEST_X)
    noise = max(noise_multiplier, _LEAST_NOISE)
    inside = np.log(sampling_probability) + (2.0 * read - 1.0) / (2.0 * noise**2)
    if sampling_probability == 1.0:
        return np.asarray(inside)
    return np.asarray(np.logaddexp(np.log1p(-sampling_probability), inside))


def check_canaries(probe: CanaryModule, patients: Patients, *, latent_size: int, kl_weight: float) -> None:
    """Refuse a module that would silence its canaries, so that an audit cannot be passed by hearing nothing.

    A canary's record of zeros goes through the real module too, with weight zero; but zero times a gradient that is
    not finite is NaN, and engines drop such a patient.

    Raises:
        IncompatibleModelError: the gradient at a record of zeros is not finite.
    """
    canary = _Canaries(like=patients, num_patients=1, records=1).batch(np.zeros(1, np.int64))
    like = probe.canaries.weight
    values, covariates = canary.values.to(like), canary.covariates.to(like)
    loss = probe(values, covariates, like.new_zeros((1, latent_size)), kl_weight).sum()
    trainable = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
    if not all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise IncompatibleModelError(
            (
                "its gradient at a record of zeros is not finite, so canaries would be dropped and an audit would hear "
                "nothing; add a small constant where it divides or takes a root or logarithm",
            )
        )


class CanaryObserver:
    """Adds up each canary's log-likelihood ratio over the steps; hand it to `train_private` as `observe`.

    The ratio is that of the *claimed* mechanism, so a false claim only costs power. Further scores assume
    less noise: where there is too little, the first is blunt (without any, it hardly tells 0 from C).
    """

    SHARPNESS = (1.0, 0.5, 0.2)
    """Noise that each score assumes [units of the claimed noise], fixed in advance."""

    def __init__(
        self, claimed: Sequence[Release], *, count: int, max_grad_norm: float, divisor: float
    ) -> None:
        """Prepare the scores.

        Args:
            claimed: At least one step; steps beyond the claim are read as its last one.
            count: m.
            max_grad_norm: C.
            divisor: Of the noised mean.
        """
        self._claimed = [release for release in claimed if release.steps > 0]
        if not self._claimed:
            raise ValueError("an audit needs a claim of at least one step")
        self._ends = np.cumsum([release.steps for release in self._claimed])
        self._unit = divisor / max_grad_norm
        self._steps = 0
        self.scores = np.zeros((len(self.SHARPNESS), count))

    def __call__(self, released: Gradients) -> None:
        """Read one step."""
        current = min(int(np.searchsorted(self._ends, self._steps, side="right")), len(self._claimed) - 1)
        claim = self._claimed[current]
        x = released[CANARY_WEIGHTS][:, 0].cpu().numpy() * self._unit
        for row, sharpness in enumerate(self.SHARPNESS):
            self.scores[row] += log_likelihood_ratio(
                x,
                sampling_probability=claim.sampling_probability,
                noise_multiplier=sharpness * claim.noise_multiplier,
            )
        self._steps += 1
