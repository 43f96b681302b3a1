"""Private training in few dimensions: w = w0 + V theta, with public orthonormal directions V.

The noise of a step has the norm sigma C sqrt(number of trained coordinates). Here theta alone is trained, k numbers
in place of every weight, so that clip and noise are in k dimensions:

    g_p(theta) = V g_p(w);   w - w0 = V^T theta;   |w - w0| = |theta|

`within` wraps a module so that the loops of `training` and the engine `vmap` see theta and nothing else: sampling,
clip, noise, optimiser, proximal term and accounting are as ever. `public_directions` makes V from public patients.

Guarantees (tests/unit/privacy/test_subspace.py, tests/property/test_subspace_bound.py,
tests/statistical/test_subspace_noise.py):
    - A patient moves the sum of gradients of theta by at most C, whatever V is: V is a constant of the step.
      Orthonormality is asked for so that clip, noise and proximal term mean what they mean without it.
    - Weights leave w0 + span(V) by rounding alone; noise likewise.

What it does not do: judge whether the directions are public. Made from private data they would cost privacy that
nobody counts.

References:
    Yu, Zhang, Chen, Liu 2021 (gradient embedding), arXiv:2102.12677, without the residual; Zhou, Wu, Banerjee 2021,
    arXiv:2007.03813, algorithm 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from privacy.clipping import Batch
from privacy.training import Patients

__all__ = [
    "ORTHONORMAL_WITHIN",
    "Directions",
    "Subspace",
    "distance_from_orthonormal",
    "public_directions",
    "within",
]

Directions = dict[str, Tensor]
"""[k, *shape] of each trained parameter: direction j is the concatenation of the rows j."""

ORTHONORMAL_WITHIN = 1e-4
"""Largest entry of V V^T - I that float32 directions may have; of a QR in float64 it is about 1e-7."""

_COLUMNS = 2**16  # of a matrix converted to float64 at a time
_RANK = (
    1e-10  # least eigenvalue of a direction, of the largest: below, it is float32 rounding of the gradients
)


class Subspace(nn.Module):
    """A module as a function of theta; made by `within`.

    Attributes:
        theta: [k], zero at first: the only trainable parameter.
    """

    def __init__(self, module: nn.Module, directions: Mapping[str, Tensor]) -> None:
        super().__init__()
        moving = {name: tensor.detach() for name, tensor in module.named_parameters() if name in directions}
        like = next(iter(moving.values()))
        self._directions = {name: directions[name].to(like) for name in moving}
        self._origin = {name: tensor.clone() for name, tensor in moving.items()}
        self._inner = module
        self.theta = nn.Parameter(torch.zeros(len(next(iter(self._directions.values())))).to(like))

    def weights(self) -> dict[str, Tensor]:
        """Return w0 + V theta, by name; in the weights' own type under autocast, too."""
        with torch.autocast(self.theta.device.type, enabled=False):
            return {
                name: origin + torch.tensordot(self.theta, self._directions[name], 1)
                for name, origin in self._origin.items()
            }

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        """Return what the module returns at these weights: [B]."""
        arguments = (values, covariates, latent_noise, kl_weight)
        losses: Tensor = torch.func.functional_call(self._inner, self.weights(), arguments)
        return losses


@contextlib.contextmanager
def within(module: nn.Module, directions: Mapping[str, Tensor]) -> Iterator[Subspace]:
    """Give a module whose only trainable parameter is theta, and write what it became into `module` at the end.

    Args:
        module: Its trainable parameters are those that the directions name, no others.
        directions: V, orthonormal, k >= 1.

    Raises:
        ValueError: names or shapes are not those of the trainable parameters.

    Guarantees:
        After an error the weights are those of before; parameters are trainable or not as before, always.
    """
    moving = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    shapes = {name: (len(each), *moving[name].shape) for name, each in directions.items() if name in moving}
    counts = {len(each) for each in directions.values()}
    if set(moving) != set(directions) or not moving or len(counts) != 1 or counts == {0}:
        raise ValueError("directions must be of exactly the trainable parameters, equally many of each")
    if wrong := [name for name, each in directions.items() if tuple(each.shape) != shapes[name]]:
        raise ValueError(f"directions of {wrong[0]} must have its shape after the first axis")
    space = Subspace(module, directions)
    for tensor in moving.values():
        tensor.requires_grad_(False)
    try:
        yield space
        with torch.no_grad():
            for name, value in space.weights().items():
                moving[name].copy_(value)
    finally:
        for tensor in moving.values():
            tensor.requires_grad_(True)


def distance_from_orthonormal(matrix: np.ndarray) -> float:
    """Return the largest entry of |V V^T - I|; infinite or NaN where V is not finite.

    Args:
        matrix: V, [k, P].

    Guarantees:
        Float64, with memory for k x 65,536 numbers at a time.
    """
    gram = -np.eye(len(matrix))
    for start in range(0, matrix.shape[1], _COLUMNS):
        part = matrix[:, start : start + _COLUMNS].astype(np.float64)
        gram += part @ part.T
    return float(np.abs(gram).max())


def public_directions(
    module: nn.Module,
    patients: Patients,
    k: int,
    *,
    latent_size: int,
    kl_weight: float = 1.0,
    max_patients: int = 512,
    max_records: int = 4,
    seed: int = 0,
) -> Directions:
    """Return the k directions that hold most of the gradients of public patients, at the weights of the module.

    Rows g_p / |g_p| for up to `max_patients` patients, evenly spaced; V is their top k right singular vectors, by the
    eigenvectors of the matrix of their inner products. Norms are taken out because private gradients are clipped.

    Args:
        module: At public weights; gradients are of its trainable parameters. Left as found.
        patients: A public cohort: nothing here is noised.
        k: Directions, >= 1.
        latent_size: Z.
        kl_weight: >= 0.
        max_patients: Bounds memory, to so many times all trained weights (float32), and k.
        max_records: Random ones of each patient.
        seed: Of records and latent noise.

    Returns:
        Float32, orthonormal to rounding; each has its largest entry above zero.

    Raises:
        ValueError: the public gradients span fewer than k directions.

    Guarantees:
        Equal input gives equal directions on one machine (tests/unit/privacy/test_subspace.py).

    References:
        Zhou, Wu, Banerjee 2021, arXiv:2007.03813, section 3 (top eigenspace of public second moments).
    """
    moving = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    if k < 1 or not moving:
        raise ValueError(f"k must be >= 1 and something trainable, got {k} and {len(moving)} parameters")
    count = min(patients.num_patients, max_patients)
    chosen = np.unique(np.linspace(0, patients.num_patients - 1, count).astype(np.int64))
    rng = np.random.Generator(np.random.Philox(key=seed))
    rows: list[Tensor] = []
    for patient in chosen:
        batch = patients.batch(np.array([patient]), max_records=max_records, rng=rng)
        noise = torch.from_numpy(rng.standard_normal((len(batch.values), latent_size), dtype=np.float32))
        gradient = _gradient(module, list(moving.values()), batch, noise, kl_weight)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        if torch.isfinite(norm) and norm > 0:
            rows.append((gradient.to(torch.float64) / norm).to(torch.float32))
    top = _top(torch.stack(rows) if rows else torch.zeros(0, 1), k)
    parts = torch.split(top, [tensor.numel() for tensor in moving.values()], dim=1)
    return {
        name: part.reshape(k, *tensor.shape).contiguous()
        for (name, tensor), part in zip(moving.items(), parts, strict=True)
    }


def _gradient(
    module: nn.Module, moving: list[nn.Parameter], batch: Batch, noise: Tensor, kl_weight: float
) -> Tensor:
    """Return [P] on the CPU: the gradient of the mean loss of one patient."""
    like = moving[0]
    losses = module(batch.values.to(like), batch.covariates.to(like), noise.to(like), kl_weight)
    found = torch.autograd.grad(losses.mean(), moving, materialize_grads=True)
    return torch.cat([each.flatten() for each in found]).detach().cpu()


def _top(rows: Tensor, k: int) -> Tensor:
    """Return [k, P] float32: the top right singular vectors of the rows [n, P].

    Raises:
        ValueError: the rows have a lower rank than k.
    """
    size = rows.shape[1]
    blocks = [slice(start, start + _COLUMNS) for start in range(0, size, _COLUMNS)]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in blocks:
        wide = rows[:, block].to(torch.float64)
        gram += wide @ wide.T
    values, vectors = torch.linalg.eigh(gram)
    rank = int((values > _RANK * values.max()).sum()) if len(values) else 0
    if rank < k:
        raise ValueError(
            f"the public gradients span {rank} directions, {k} are asked for: take fewer, or more patients"
        )
    mixing = vectors.flip(1)[:, :k].T / values.flip(0)[:k].sqrt()[:, None]
    top = torch.cat([mixing @ rows[:, block].to(torch.float64) for block in blocks], dim=1)
    exact = torch.linalg.qr(top.T).Q.T  # eigenvectors of small eigenvalues lose some orthogonality
    largest = exact.gather(1, exact.abs().argmax(1, keepdim=True))
    signed: Tensor = exact * largest.sign()
    return signed.to(torch.float32)
