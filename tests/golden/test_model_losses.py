"""Losses that must not drift: against a second implementation in numpy, and against recorded values.

A change of a recorded value means that old checkpoints and new code disagree: bump, do not adjust.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from vae.models import build, signature_of
from vae.spec import ModelSpec
from vae.weights import to_numpy

TABLE = ModelSpec(
    family="cvae",
    input_shape=(6,),
    latent_size=2,
    channels=(5, 4),
    num_covariates=1,
    decoder_scale="learned",
    initial_scale=0.5,
    output="sigmoid",
)
IMAGE = ModelSpec(family="vae", input_shape=(1, 12, 10), latent_size=3, channels=(8, 16), initial_scale=0.2)
VOLUME = ModelSpec(
    family="cvae",
    input_shape=(2, 8, 9, 8),
    latent_size=3,
    channels=(4, 8),
    num_covariates=2,
    decoder_scale="learned",
    upsampling="transpose",
    output="sigmoid",
)


def waves(*shape: int) -> np.ndarray:
    """Return numbers in [0, 1] that no random generator has to reproduce."""
    return (0.5 + 0.5 * np.sin(1.7 * np.arange(np.prod(shape)))).astype(np.float32).reshape(shape)


def arguments(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, covariates = waves(3, *spec.input_shape), waves(3, spec.num_covariates)
    return (
        torch.from_numpy(values),
        torch.from_numpy(covariates),
        torch.from_numpy(2 * waves(3, spec.latent_size) - 1),
    )


def perceptron(weights, part: str, hidden: np.ndarray) -> np.ndarray:
    """Linear layers with SiLU between them, in float64 numpy."""
    depth = len([name for name in weights if name.startswith(f"{part}.layers.") and name.endswith(".weight")])
    for layer in range(depth):
        hidden = hidden @ weights[f"{part}.layers.{layer}.weight"].T + weights[f"{part}.layers.{layer}.bias"]
        if layer < depth - 1:
            hidden = hidden * scipy.special.expit(hidden)
    return hidden


def numpy_losses(weights, values, covariates, noise, kl_weight):
    """The negative evidence lower bound, written from its formula alone."""
    posterior = perceptron(weights, "encoder", np.hstack([values, covariates]))
    mean, log_variance = np.split(posterior, 2, axis=1)
    latent = mean + np.sqrt(np.exp(log_variance)) * noise
    decoded = scipy.special.expit(perceptron(weights, "decoder", np.hstack([latent, covariates])))
    scale = np.exp(weights["log_scale.weight"].item())
    reconstruction = -scipy.stats.norm.logpdf(values, decoded, scale).sum(axis=1)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(axis=1)
    return reconstruction + kl_weight * kl


def test_a_table_model_equals_its_formula_in_numpy():
    model = build(TABLE, seed=11)
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases take part as well
            parameter.add_(torch.from_numpy(0.3 * waves(*parameter.shape)))
    weights = {name: value.astype(np.float64) for name, value in to_numpy(model, model.state_dict()).items()}
    tensors = arguments(TABLE)
    expected = numpy_losses(weights, *(tensor.numpy().astype(np.float64) for tensor in tensors), 0.3)
    assert model(*tensors, 0.3).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert model(*tensors, 0.4).tolist() != pytest.approx(expected.tolist(), rel=1e-4)


def descent(spec: ModelSpec, learning_rate: float) -> list[float]:
    """Return the mean loss before each of five steps of plain gradient descent."""
    model = build(spec, seed=11)
    tensors = arguments(spec)
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
    result = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = model(*tensors, 1.0).mean()
        loss.backward()
        optimiser.step()
        result.append(loss.item())
    return result


RECORDED = {
    "table": (TABLE, 1e-2, [3.015529, 2.931377, 2.854734, 2.785001, 2.721583]),
    "image": (IMAGE, 1e-6, [1196.274, 1120.136, 1055.191, 999.4739, 951.335]),
    "volume": (VOLUME, 1e-6, [6614.233, 6377.609, 6156.284, 5948.852, 5754.068]),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_descent_follows_its_recorded_losses(name):
    spec, learning_rate, expected = RECORDED[name]
    assert descent(spec, learning_rate) == pytest.approx(expected, rel=1e-5)
    assert expected == sorted(expected, reverse=True)


def test_parameter_names_and_shapes_are_those_of_stored_weights():
    assert [f"{name} {list(shape)}" for name, shape, _ in signature_of(VOLUME)] == [
        "decoder.features.bias [96]",
        "decoder.features.weight [96, 5]",
        "decoder.levels.0.adn.N.bias [4]",
        "decoder.levels.0.adn.N.weight [4]",
        "decoder.levels.0.conv.bias [4]",
        "decoder.levels.0.conv.weight [8, 4, 4, 4, 4]",
        "decoder.levels.1.conv.bias [2]",
        "decoder.levels.1.conv.weight [4, 2, 4, 4, 4]",
        "encoder.levels.0.convolution.adn.N.bias [4]",
        "encoder.levels.0.convolution.adn.N.weight [4]",
        "encoder.levels.0.convolution.conv.bias [4]",
        "encoder.levels.0.convolution.conv.weight [4, 2, 4, 4, 4]",
        "encoder.levels.0.shift.weight [4, 2]",
        "encoder.levels.1.convolution.adn.N.bias [8]",
        "encoder.levels.1.convolution.adn.N.weight [8]",
        "encoder.levels.1.convolution.conv.bias [8]",
        "encoder.levels.1.convolution.conv.weight [8, 4, 4, 4, 4]",
        "encoder.levels.1.shift.weight [8, 2]",
        "encoder.posterior.bias [6]",
        "encoder.posterior.weight [6, 96]",
        "log_scale.weight [1, 1]",
    ]
