"""The bookkeeping engine against two peers at once, layer by layer: Opacus' hooks, and autograd, a patient at a time.

And MONAI's attention and AutoencoderKL as they are. MONAI reshapes with einops, which is not among our packages, so
that its three patterns are written here; all else is MONAI's own code.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privacy.bookkeeping import BookkeepingEngine
from privacy.clipping import build_engine
from privacy.compatible import check_model
from privacy.errors import IncompatibleModelError
from tests.support.layer_toys import LayerLoss, batch_of, clip, distance, gradients_of, median_norm, seeded
from tests.support.private_toys import LATENT, latent_of

RAGGED = (1, 3, 2, 1)


def indices(values: Tensor) -> Tensor:
    return (values.abs() * 4).long() % 5


class RawParameters(nn.Module):
    """Parameters of no layer, alone and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.shifts = nn.ParameterList([torch.zeros(6), torch.zeros(())])

    def forward(self, values: Tensor) -> Tensor:
        shifted: Tensor = self.scale * values + self.shifts[0]
        return torch.sin(shifted) * torch.exp(self.shifts[1])


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: LayerLoss(nn.Linear(6, 4)), (6,)),
    "Linear of positions": (lambda: LayerLoss(nn.Linear(6, 4)), (5, 6)),
    "Conv1d": (lambda: LayerLoss(nn.Conv1d(2, 3, 3, 2, 1)), (2, 9)),
    "Conv2d": (lambda: LayerLoss(nn.Conv2d(2, 3, 4, 2, 1)), (2, 8, 6)),
    "Conv3d": (lambda: LayerLoss(nn.Conv3d(2, 3, 3, 1, 1)), (2, 4, 5, 3)),
    "ConvTranspose1d": (lambda: LayerLoss(nn.ConvTranspose1d(2, 3, 4, 2, 1)), (2, 5)),
    "ConvTranspose2d": (lambda: LayerLoss(nn.ConvTranspose2d(2, 3, 4, 2, 1)), (2, 4, 3)),
    "ConvTranspose3d": (lambda: LayerLoss(nn.ConvTranspose3d(2, 3, 4, 2, 1)), (2, 2, 3, 2)),
    "GroupNorm": (lambda: LayerLoss(nn.GroupNorm(2, 4)), (4, 5, 3)),
    "LayerNorm": (lambda: LayerLoss(nn.LayerNorm([5, 3])), (4, 5, 3)),
    "InstanceNorm1d": (lambda: LayerLoss(nn.InstanceNorm1d(4, affine=True)), (4, 6)),
    "InstanceNorm2d": (lambda: LayerLoss(nn.InstanceNorm2d(4, affine=True)), (4, 5, 3)),
    "InstanceNorm3d": (lambda: LayerLoss(nn.InstanceNorm3d(4, affine=True)), (4, 3, 3, 2)),
    "Embedding": (lambda: LayerLoss(nn.Embedding(5, 3), indices), (4,)),
    "PReLU": (lambda: LayerLoss(nn.PReLU()), (4, 3)),
    "PReLU of channels": (lambda: LayerLoss(nn.PReLU(4)), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_each_layer_equals_opacus_and_the_loop(name: str, dtype: torch.dtype, tolerance: float):
    make, shape = LAYERS[name]
    module, batch = seeded(make).to(dtype), batch_of(shape, RAGGED)
    gradients = gradients_of(module, batch)
    norms = torch.linalg.vector_norm(gradients, dim=1).sort().values
    bound = float(norms[1:3].mean())  # between two patients: no rounding decides who is clipped
    ours = clip(BookkeepingEngine(), module, batch, bound)
    theirs = build_engine("opacus").clipped_sum(
        module, batch, latent_noise=latent_of(batch), kl_weight=0.7, max_grad_norm=bound
    )
    assert distance(ours, gradients, bound) <= tolerance
    assert distance(theirs, gradients, bound) <= tolerance
    assert ours.num_clipped == theirs.num_clipped == 2
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_parameters_of_no_layer_equal_the_loop(dtype: torch.dtype, tolerance: float):
    module, batch = seeded(lambda: LayerLoss(RawParameters())).to(dtype), batch_of((6,), RAGGED)
    gradients = gradients_of(module, batch)
    for bound in (1e9, median_norm(gradients)):
        assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) <= tolerance


# --- MONAI -----------------------------------------------------------------------------------------------


class Rearrange(nn.Module):
    """The three patterns of MONAI 1.6's `SABlock`."""

    def __init__(self, pattern: str, *, l: int = 0, qkv: int = 0) -> None:  # noqa: E741 - MONAI's name
        super().__init__()
        self._pattern, self._heads = pattern, l

    def forward(self, values: Tensor) -> Tensor:
        if self._pattern == "b l h d -> b h (l d)":
            return values.transpose(1, 2).flatten(2)
        rows, positions, _ = values.shape
        if self._pattern == "b h (l d) -> b l h d":
            return values.reshape(rows, positions, self._heads, -1).transpose(1, 2)
        assert self._pattern == "b h (qkv l d) -> qkv b l h d"
        return values.reshape(rows, positions, 3, self._heads, -1).permute(2, 0, 3, 1, 4)


@pytest.fixture
def without_einops(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks.blocks import selfattention

    monkeypatch.setattr(selfattention, "Rearrange", Rearrange)


class Kl(nn.Module):
    """MONAI's AutoencoderKL with attention, sampled from the noise that it is given."""

    def __init__(self) -> None:
        from monai.networks.nets import AutoencoderKL

        super().__init__()
        self.net = AutoencoderKL(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(4, 8),
            num_res_blocks=(1, 1),
            attention_levels=(False, True),
            latent_channels=LATENT,
            norm_num_groups=2,
        )

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        mean, scale = self.net.encode(values)
        decoded = self.net.decode(mean + scale * latent_noise[:, :, None, None])
        kl = 0.5 * (mean.square() + scale.square() - 2 * scale.log() - 1)
        error: Tensor = (decoded - values).square().flatten(1).sum(1)
        return error + kl_weight * kl.flatten(1).sum(1)


def attention(*, combined: bool) -> nn.Module:
    from monai.networks.blocks import SABlock

    return LayerLoss(SABlock(6, 2, qkv_bias=True, use_combined_linear=combined))


@pytest.mark.usefixtures("without_einops")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: attention(combined=True), (5, 6)),
        (lambda: attention(combined=False), (5, 6)),
        (Kl, (1, 8, 8)),
    ],
    ids=["SABlock", "SABlock of three layers", "AutoencoderKL"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_attention_of_monai_equals_the_loop(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
):
    module, batch = seeded(make).to(dtype), batch_of(shape, RAGGED)
    gradients = gradients_of(module, batch)
    bound = median_norm(gradients)
    assert distance(clip(BookkeepingEngine(), module, batch, bound), gradients, bound) <= tolerance


@pytest.mark.usefixtures("without_einops")
def test_the_guard_accepts_an_autoencoder_with_attention_and_sees_where_opacus_errs():
    module, example = seeded(Kl), batch_of((1, 8, 8), (1,))
    check_model(module, example, LATENT)
    # Opacus 1.6 takes channels that lie last in memory, as they do behind attention, for channels that lie first.
    with pytest.raises(IncompatibleModelError, match="gradients of the opacus engine differ from autograd's"):
        check_model(module, example, LATENT, engine="opacus")
