"""Building, shapes, the decoder's scale, sharing by name, refusals; independence of records is in
tests/property."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.variants import VARIANTS, make_inputs
from vae.errors import ModelSpecError
from vae.models import build, signature_of
from vae.models.initialisation import initialise
from vae.models.naming import shared_names
from vae.models.protocol import Vae
from vae.models.separability import dp_support
from vae.spec import ModelSpec
from vae.weights import hash_weights, signature, to_numpy

ROOT = Path(__file__).resolve().parents[3]
EVERY_VARIANT = pytest.mark.parametrize("name", VARIANTS)


def image_spec(**changes) -> ModelSpec:
    base = {"family": "vae", "input_shape": (1, 8, 8), "latent_size": 2, "channels": (8,)}
    return ModelSpec(**(base | changes))


def all_weights(model):
    return to_numpy(model, model.state_dict())


@EVERY_VARIANT
def test_every_variant_offers_the_protocol_and_its_shapes(name):
    spec = VARIANTS[name]
    model = build(spec, seed=0)
    inputs = make_inputs(spec, rows=3, seed=1)
    posterior = model.encode(inputs.values, inputs.covariates)
    loss = model.per_sample_loss(inputs.values, inputs.covariates, latent_noise=inputs.noise, kl_weight=2.0)
    assert isinstance(model, Vae)
    assert posterior.mean.shape == posterior.log_variance.shape == (3, spec.latent_size)
    assert model.decode(inputs.noise, inputs.covariates).shape == inputs.values.shape
    assert set(loss.parts) == {"reconstruction", "kl"}
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 2.0 * loss.parts["kl"])
    assert bool((loss.parts["kl"] >= 0).all())
    forward = model(inputs.values, inputs.covariates, inputs.noise, 2.0)
    assert torch.equal(forward, loss.total)


@EVERY_VARIANT
def test_every_variant_supports_private_training(name):
    assert build(VARIANTS[name], seed=0).dp_support.supported
    assert build(VARIANTS[name], seed=0).dp_support.reason == ""


@EVERY_VARIANT
def test_the_seed_alone_decides_the_weights(name):
    torch.manual_seed(5)
    first = hash_weights(all_weights(build(VARIANTS[name], seed=7)))
    torch.manual_seed(6)
    assert hash_weights(all_weights(build(VARIANTS[name], seed=7))) == first
    assert hash_weights(all_weights(build(VARIANTS[name], seed=8))) != first


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build(VARIANTS["3d-transpose-cvae-learned"], seed=7)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_are_float32_whatever_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        wide = all_weights(build(VARIANTS["2d-transpose-cvae-learned"], seed=7))
    finally:
        torch.set_default_dtype(torch.float32)
    assert hash_weights(wide) == hash_weights(
        all_weights(build(VARIANTS["2d-transpose-cvae-learned"], seed=7))
    )


def test_building_in_two_threads_gives_the_same_weights():
    hashes: list[str] = []
    spec = VARIANTS["table-cvae-learned"]

    def work() -> None:
        hashes.extend(hash_weights(all_weights(build(spec, seed=7))) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashes) == 10
    assert len(set(hashes)) == 1


@EVERY_VARIANT
def test_signature_of_a_spec_is_the_signature_of_its_model(name):
    assert signature_of(VARIANTS[name]) == signature(all_weights(build(VARIANTS[name], seed=0)))


def test_initial_weights_have_variance_one_over_fan_in():
    model = build(image_spec(input_shape=(1, 32, 32), channels=(32, 64), upsampling="transpose"), seed=0)
    first, transposed = model.encoder.levels[1].convolution.conv, model.decoder.levels[0].conv
    assert first.weight.var().item() == pytest.approx(1 / (32 * 4 * 4), rel=0.05)
    # 64 inputs; of the 4 x 4 taps 2 x 2 meet at each output
    assert transposed.weight.var().item() == pytest.approx(1 / (64 * 2 * 2), rel=0.05)
    assert first.weight.var().item() != pytest.approx(1 / (3 * 32 * 4 * 4), rel=0.2)  # torch's own default
    assert bool((first.bias == 0).all())


def test_a_layer_without_an_initialisation_rule_is_refused():
    model = build(image_spec(), seed=0)
    model.encoder.extra = nn.PReLU()
    with pytest.raises(RuntimeError, match=r"no initialisation rule for encoder.extra \(PReLU\)"):
        initialise(model, initial_scale=0.1, generator=torch.Generator())


def test_a_table_model_does_not_import_monai():
    code = (
        "import sys; from vae.models import build, signature_of; from vae.spec import ModelSpec;"
        "spec = ModelSpec(family='vae', input_shape=(4,), latent_size=2, channels=(3,));"
        "build(spec, seed=0), signature_of(spec); sys.exit('monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- the decoder's scale ----------------------------------------


@pytest.mark.parametrize("decoder_scale", ["fixed", "learned"])
def test_the_scale_starts_where_the_spec_says_and_enters_the_loss(decoder_scale):
    spec = image_spec(decoder_scale=decoder_scale, initial_scale=0.25)
    model = build(spec, seed=0)
    inputs = make_inputs(spec, rows=2, seed=1)
    latent = torch.zeros((2, 2))
    assert model.decoder_log_scale(latent).tolist() == pytest.approx([math.log(0.25)] * 2)
    posterior = model.encode(inputs.values, inputs.covariates)
    mean = model.decode(posterior.mean, inputs.covariates)
    loss = model.per_sample_loss(inputs.values, inputs.covariates, latent_noise=latent, kl_weight=1.0)
    expected = -torch.distributions.Normal(mean, 0.25).log_prob(inputs.values).sum((1, 2, 3))
    torch.testing.assert_close(loss.parts["reconstruction"], expected)


def test_only_a_learned_scale_is_a_parameter():
    names = {
        scale: {entry[0] for entry in signature_of(image_spec(decoder_scale=scale))}
        for scale in ("fixed", "learned")
    }
    assert names["learned"] - names["fixed"] == {"log_scale.weight"}


def test_a_learned_scale_finds_the_root_mean_square_error():
    spec = ModelSpec(
        family="vae",
        input_shape=(3,),
        latent_size=1,
        channels=(2,),
        decoder_scale="learned",
        initial_scale=2.0,
    )
    model = build(spec, seed=0)
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)  # the decoder says 0 for everything
    values = 0.5 * torch.randn((4000, 3), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(model.log_scale.parameters(), lr=0.1)
    for _ in range(80):
        optimiser.zero_grad()
        model(values, torch.zeros((4000, 0)), torch.zeros((4000, 1)), 0.0).mean().backward()
        optimiser.step()
    assert math.exp(model.log_scale.weight.item()) == pytest.approx(0.5, rel=0.03)


# --- inputs ----------------------------------------


def test_sigmoid_output_stays_in_the_unit_interval_and_linear_does_not():
    latent, covariates = 50 * torch.ones((1, 2)), torch.zeros((1, 0))
    for output, bounded in (("sigmoid", True), ("linear", False)):
        decoded = build(image_spec(output=output), seed=0).decode(latent, covariates)
        assert bool(((decoded >= 0) & (decoded <= 1)).all()) is bounded


@pytest.mark.parametrize("name", [name for name in VARIANTS if "cvae" in name])
def test_covariates_reach_encoder_and_decoder(name):
    spec = VARIANTS[name]
    model = build(spec, seed=0)
    inputs = make_inputs(spec, rows=1, seed=1)
    other = inputs.covariates + 1.0
    posterior, shifted = (model.encode(inputs.values, each).mean for each in (inputs.covariates, other))
    assert (posterior - shifted).abs().max().item() > 1e-3
    decoded, moved = (model.decode(inputs.noise, each) for each in (inputs.covariates, other))
    assert (decoded - moved).abs().max().item() > 1e-3


def test_the_encoder_sees_an_image_s_gain():
    # GroupNorm after convolutions without bias would make x and 2 x the same.
    model = build(image_spec(input_shape=(1, 16, 16), channels=(8, 16)), seed=0)
    with torch.no_grad():
        model.encoder.levels[0].convolution.conv.bias.uniform_(
            -0.5, 0.5, generator=torch.Generator().manual_seed(0)
        )
    image, none = make_inputs(model.spec, rows=1, seed=1).values, torch.zeros((1, 0))
    assert (model.encode(image, none).mean - model.encode(2 * image, none).mean).abs().max().item() > 1e-2


def test_an_outlier_has_a_finite_loss():
    spec = image_spec()
    model = build(spec, seed=0)
    with torch.no_grad():
        model.encoder.posterior.bias.fill_(1e4)
    inputs = make_inputs(spec, rows=1, seed=1)
    assert bool(torch.isfinite(model(inputs.values, inputs.covariates, inputs.noise, 1.0)).all())


@pytest.mark.parametrize("size", [5, 6, 7, 8, 11, 13])
@pytest.mark.parametrize("upsampling", ["interpolate", "transpose"])
def test_any_size_above_the_stride_comes_back(size, upsampling):
    spec = image_spec(input_shape=(1, size, 9, 5), channels=(4, 4), upsampling=upsampling)
    assert build(spec, seed=0).decode(torch.zeros((2, 2)), torch.zeros((2, 0))).shape == (2, 1, size, 9, 5)


def test_the_far_edge_of_a_padded_image_is_not_lost():
    spec = image_spec(input_shape=(1, 9, 9), channels=(8, 8))
    model = build(spec, seed=0)
    image = torch.zeros((1, 1, 9, 9))
    marked = image.clone()
    marked[..., -1, -1] = 1.0
    none = torch.zeros((1, 0))
    assert not torch.equal(model.encode(image, none).mean, model.encode(marked, none).mean)


def test_an_axis_too_short_for_its_levels_is_refused_by_name():
    with pytest.raises(
        ModelSpecError, match=r"input size 16x4x16 is too small for 2 levels .* more than 4 positions"
    ):
        build(image_spec(input_shape=(1, 16, 4, 16), channels=(4, 8)), seed=0)


def test_wrong_shapes_are_refused_before_they_broadcast():
    model = build(VARIANTS["2d-transpose-cvae-fixed"], seed=0)
    values, covariates = torch.zeros((2, 1, 9, 10)), torch.zeros((2, 2))
    with pytest.raises(ValueError, match=r"values must be \[B, 1, 9, 10\], got \[2, 1, 10, 9\]"):
        model.encode(values.transpose(2, 3), covariates)
    with pytest.raises(ValueError, match=r"covariates must be \[B, 2\], got \[2, 1\]"):
        model.encode(values, covariates[:, :1])
    with pytest.raises(ValueError, match=r"latent must be \[B, 3\], got \[2, 4\]"):
        model.decode(torch.zeros((2, 4)), covariates)
    with pytest.raises(ValueError, match=r"latent_noise must be \[2, 3\], got \[1, 3\]"):
        model.per_sample_loss(values, covariates, latent_noise=torch.zeros((1, 3)), kl_weight=1.0)


@pytest.mark.parametrize(
    ("width", "groups"), [(1, 1), (3, 1), (8, 2), (12, 3), (16, 4), (18, 3), (32, 8), (64, 8)]
)
def test_groups_divide_the_width_and_hold_four_channels(width, groups):
    from vae.models.convolutional import _groups

    assert _groups(width) == groups


# --- sharing ----------------------------------------


@EVERY_VARIANT
def test_encoder_and_decoder_split_the_parameters(name):
    model = build(VARIANTS[name], seed=0)
    everything = {parameter for parameter, _ in model.named_parameters()}
    encoder, decoder = model.shared_names("encoder"), model.shared_names("decoder")
    assert model.shared_names("all") == everything
    assert encoder | decoder == everything
    assert not encoder & decoder
    assert all(parameter.startswith("encoder.") for parameter in encoder)
    assert ("log_scale.weight" in decoder) is (VARIANTS[name].decoder_scale == "learned")
    first = "decoder.features.weight" if VARIANTS[name].is_image else "decoder.layers.0.weight"
    assert first in decoder


def test_norms_stay_local():
    model = build(VARIANTS["3d-interpolate-vae-learned"], seed=0)
    local = model.shared_names("all") - model.shared_names("norm-local")
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)}
    assert len(norms) == 3  # two encoder levels; the last of two decoder levels has none
    assert local == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    table = build(VARIANTS["table-vae-fixed"], seed=0)
    assert table.shared_names("norm-local") == table.shared_names("all")


def test_an_unknown_sharing_is_refused():
    with pytest.raises(ValueError, match=r"all, decoder, encoder, norm-local; got 'heads'"):
        shared_names(build(image_spec(), seed=0), "heads")


# --- private training ruled out ----------------------------------------


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.BatchNorm1d(4), "whole batch"),
        (nn.BatchNorm3d(4, affine=False, track_running_stats=False), "whole batch"),
        (nn.SyncBatchNorm(4), "whole batch"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "buffers"),
        (nn.Dropout(0.1), "global generator"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "buffers"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value.replace(" ", "-"),
)
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_couple_or_store_are_reported_by_name(layer, says, frozen):
    layer.requires_grad_(not frozen)
    model = build(image_spec(), seed=0)
    model.encoder.extra = layer
    support = dp_support(model)
    assert not support.supported
    assert "encoder.extra" in support.reason
    assert says in support.reason


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.0), nn.InstanceNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)]
)
def test_layers_that_keep_records_apart_are_not_reported(layer):
    assert dp_support(nn.Sequential(layer)).supported


def test_a_codebook_kept_by_moving_averages_is_reported():
    codebook = nn.Module()
    codebook.register_buffer("ema_cluster_size", torch.zeros(8))
    assert "buffers" in dp_support(codebook).reason


def test_a_spec_and_its_copy_build_the_same_model():
    spec = VARIANTS["2d-transpose-cvae-learned"]
    assert signature_of(dataclasses.replace(spec)) == signature_of(spec)
    assert signature_of(dataclasses.replace(spec, latent_size=4)) != signature_of(spec)


def test_a_model_without_covariates_does_not_look_at_those_of_the_cohort():
    spec = ModelSpec(family="vae", input_shape=(4,), latent_size=2, channels=(3,))
    model = build(spec, seed=0)
    values, noise = torch.rand(5, 4), torch.zeros(5, 2)
    without = model(values, torch.zeros(5, 0), noise, 1.0)
    with_two = model(values, torch.full((5, 2), float("nan")), noise, 1.0)
    assert torch.equal(without, with_two)
