"""What training may move: closed choices, by name; and which of them leave nothing to share."""

from typing import get_args

import pytest

from vae.models import build
from vae.models.naming import trainable_names
from vae.spec import NOTHING_TRAVELS, ModelSpec, Sharing, Trainable

TABLE = ModelSpec(family="vae", input_shape=(5,), latent_size=2, channels=(4,), decoder_scale="learned")
IMAGE = ModelSpec(family="vae", input_shape=(1, 8, 8), latent_size=2, channels=(4, 8))
CONDITIONAL = ModelSpec(
    family="cvae",
    input_shape=(1, 8, 8),
    latent_size=2,
    channels=(4, 8),
    num_covariates=2,
    upsampling="transpose",
)
SPECS = {"table": TABLE, "image": IMAGE, "conditional": CONDITIONAL}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_halves_split_the_model_and_everything_is_all(spec):
    model = build(spec, seed=0)
    everything = {name for name, _ in model.named_parameters()}
    assert model.trainable_names("all") == everything
    encoder, decoder = model.trainable_names("encoder"), model.trainable_names("decoder")
    assert encoder | decoder == everything
    assert not encoder & decoder


def test_the_biases_of_a_table_and_its_last_layer():
    model = build(TABLE, seed=0)
    assert model.trainable_names("biases") == {
        "encoder.layers.0.bias",
        "encoder.layers.1.bias",
        "decoder.layers.0.bias",
        "decoder.layers.1.bias",
    }
    assert model.trainable_names("last") == {"decoder.layers.1.weight", "decoder.layers.1.bias"}


def test_the_biases_of_an_image_hold_scale_and_shift_of_norms_and_no_kernel():
    model = build(IMAGE, seed=0)
    names = model.trainable_names("biases")
    assert all(dict(model.named_parameters())[name].ndim == 1 for name in names)
    assert names == {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert "encoder.levels.0.convolution.adn.N.weight" in names, "the scale of a GroupNorm"


@pytest.mark.parametrize("spec", [IMAGE, CONDITIONAL], ids=["interpolate", "transpose"])
def test_the_last_level_of_an_image_is_the_one_that_gives_its_channels(spec):
    model = build(spec, seed=0)
    names = model.trainable_names("last")
    assert names
    assert all(name.startswith("decoder.levels.1.") for name in names)
    biases = [dict(model.named_parameters())[name] for name in names if name.endswith("bias")]
    assert [tuple(bias.shape) for bias in biases] == [(1,)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nothing_travels_exactly_where_the_table_says_so(spec):
    model = build(spec, seed=0)
    empty = {
        (sharing, which)
        for sharing in get_args(Sharing)
        for which in get_args(Trainable)
        if not model.shared_names(sharing) & model.trainable_names(which)
    }
    assert empty == NOTHING_TRAVELS


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"trainable must be one of all, .*got 'heads'"):
        trainable_names(build(TABLE, seed=0), "heads")
