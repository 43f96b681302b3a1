"""Models that must be accepted, models that must be refused, and for which reason each."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.config import load_experiment
from privacy.compatible import check_model
from privacy.errors import IncompatibleModelError, PrivacyError
from privacy.plan import GradEngine
from tests.support.private_toys import LATENT, SHAPES, ImageVae, TableVae, make_module
from vae.data.cohort import Batch
from vae.models import build

engines = pytest.mark.parametrize("engine", ["vmap", "opacus", "bookkeeping"])


def example(shape: tuple[int, ...], covariates: int = 2) -> Batch:
    return Batch(
        values=torch.zeros(1, *shape),
        covariates=torch.zeros(1, covariates),
        patient=torch.zeros(1, dtype=torch.int64),
        num_patients=1,
    )


def reasons(module: nn.Module, name: str = "image", engine: GradEngine = "bookkeeping") -> tuple[str, ...]:
    """Return why a module is refused; empty if it is accepted."""
    try:
        check_model(module, example(SHAPES[name]), LATENT, engine=engine)
    except IncompatibleModelError as error:
        return error.reasons
    return ()


def assert_refused(found: tuple[str, ...], *fragments: str) -> None:
    """Each fragment has to occur in one reason at least."""
    for fragment in fragments:
        assert any(fragment in reason for reason in found), f"{fragment!r} is in none of {found}"


class Coupled(ImageVae):
    """A VAE whose loss gets a term of the whole batch."""

    def __init__(self, weight: float, kind: str) -> None:
        super().__init__()
        self.weight, self.kind = weight, kind

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        losses = super().forward(values, covariates, latent_noise, kl_weight)
        mean = self.posterior(self.encoder(values))[:, :LATENT]
        if self.kind == "covariance":  # DIP-VAE
            penalty = ((mean.T @ mean / len(mean)) - torch.eye(LATENT)).square().sum()
        elif self.kind == "total correlation":  # minibatch estimate of beta-TCVAE
            log_density = -0.5 * (mean[:, None] - mean[None]).square()
            penalty = log_density.sum(2).logsumexp(1) - log_density.logsumexp(1).sum(1)
        else:  # MMD against prior samples
            distance = (mean[:, None] - latent_noise[None]).square().sum(2)
            penalty = -torch.exp(-distance).mean()
        return losses + self.weight * penalty


class Codebook(ImageVae):
    """A quantised VAE whose codebook follows the data by a moving average, as VQ-VAE's does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.linspace(-1, 1, 4 * LATENT).reshape(4, LATENT))

    def forward(self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float) -> Tensor:
        mean = self.posterior(self.encoder(values))[:, :LATENT]
        nearest = torch.cdist(mean, self.codebook).argmin(1)
        if self.training:
            with torch.no_grad():
                for code in nearest.unique():
                    self.codebook[code] = 0.99 * self.codebook[code] + 0.01 * mean[nearest == code].mean(0)
        quantised = mean + (self.codebook[nearest] - mean).detach()
        return (self.decoder(quantised) - values).square().flatten(1).sum(1)


class Remembering(TableVae):
    """Keeps the last batch in a plain attribute."""

    last: Tensor | None = None

    def forward(self, values: Tensor, *arguments: object) -> Tensor:
        self.last = values.detach().clone()
        return super().forward(values, *arguments)


class Wrapped(TableVae):
    """A table VAE whose losses go through `change`."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.change = change

    def forward(self, *arguments: object) -> Tensor:
        return self.change(super().forward(*arguments))


class Scaled(TableVae):
    """A parameter on a module that has layers as well."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, *arguments: object) -> Tensor:
        return super().forward(*arguments) * torch.exp(-self.log_scale) + self.log_scale


@engines
@pytest.mark.parametrize("name", list(SHAPES))
def test_sound_models_are_accepted(engine: GradEngine, name: str):
    assert reasons(make_module(name), name, engine) == ()


@engines
@pytest.mark.parametrize("name", list(SHAPES))
def test_sound_models_in_double_precision_and_eval_mode_are_accepted(engine: GradEngine, name: str):
    assert reasons(make_module(name).double().eval(), name, engine) == ()


@engines
@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(4, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.Identity(),
        nn.LayerNorm([4, 4, 4]),
        nn.PReLU(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_layers_that_treat_rows_alone_are_accepted(engine: GradEngine, norm: nn.Module):
    assert reasons(ImageVae(norm), engine=engine) == ()


@engines
def test_a_partly_frozen_model_is_accepted(engine: GradEngine):
    module = make_module("image")
    module.encoder.requires_grad_(False)
    assert reasons(module, engine=engine) == ()


@engines
def test_batch_norm_is_refused(engine: GradEngine):
    found = reasons(ImageVae(nn.BatchNorm2d(4)), engine=engine)
    assert_refused(
        found,
        "opacus: BatchNorm cannot support training with differential privacy",
        "changes encoder.1.running_mean, encoder.1.running_var",
        "a patient's loss changes when the values of another patient change",
        "a patient's gradient changes",
        "use GroupNorm",
    )


@engines
@pytest.mark.parametrize("track", [True, False])
def test_frozen_batch_norm_in_train_mode_is_refused_though_opacus_accepts_it(engine: GradEngine, track: bool):
    from opacus.validators import ModuleValidator

    module = ImageVae(nn.BatchNorm2d(4, track_running_stats=track).requires_grad_(False))
    assert ModuleValidator.is_valid(module.train())
    found = reasons(module, engine=engine)
    assert_refused(found, "a patient's loss changes when the values of another patient change")
    assert any("running_mean" in reason for reason in found) is track


@engines
def test_instance_norm_with_running_statistics_is_refused(engine: GradEngine):
    found = reasons(ImageVae(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), engine=engine)
    assert_refused(found, "opacus: ", "changes encoder.1.running_mean", "no running statistics")


@engines
@pytest.mark.parametrize("kind", ["covariance", "total correlation", "mmd"])
@pytest.mark.parametrize("weight", [1.0, 1e-3])
def test_losses_that_couple_patients_are_refused_though_opacus_accepts_them(
    engine: GradEngine, kind: str, weight: float
):
    from opacus.validators import ModuleValidator

    module = Coupled(weight, kind)
    assert ModuleValidator.is_valid(module.train())
    found = reasons(module, engine=engine)
    assert_refused(
        found,
        "a patient's loss changes when the values of another patient",
        "(no batch mean or statistics, total correlation, MMD)",
    )


@pytest.mark.parametrize("kind", ["covariance", "mmd"])
def test_even_a_coupling_below_rounding_is_found_by_poisoned_rows(kind: str):
    found = reasons(Coupled(1e-12, kind))
    assert_refused(found, "changes when the values of another patient are not finite")
    assert not any("values of another patient change;" in reason for reason in found)


def test_the_coupled_model_without_its_coupling_is_accepted_up_to_its_zero():
    # Guards the tests above: the class itself is sound, its penalty is what is refused.
    module = Coupled(1.0, "covariance")
    module.__class__ = ImageVae
    assert reasons(module) == ()


@engines
def test_an_ema_codebook_is_refused(engine: GradEngine):
    found = reasons(Codebook(), engine=engine)
    assert_refused(found, "a training forward pass changes codebook", "a codebook learned by gradient")


@engines
def test_monai_vqvae_is_refused(engine: GradEngine):
    from monai.networks.nets import VQVAE

    class Monai(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = VQVAE(
                spatial_dims=2,
                in_channels=1,
                out_channels=1,
                channels=(4, 4),
                num_res_channels=(4, 4),
                num_res_layers=1,
                downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
                num_embeddings=8,
                embedding_dim=4,
            )

        def forward(
            self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float
        ) -> Tensor:
            decoded, commitment = self.net(values)
            return (decoded - values).square().flatten(1).sum(1) + commitment

    found = reasons(Monai(), engine=engine)
    assert_refused(
        found,
        "a training forward pass changes net.quantizer",
        "a codebook learned by gradient",
        "a patient's loss changes when the values of another patient change",
    )


def test_a_batch_kept_in_a_plain_attribute_is_refused():
    assert_refused(reasons(Remembering(), "table"), "a training forward pass changes .last")


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda losses: losses.mean(), ["forward returns shape ()", "one loss a row"]),
        (lambda losses: losses[:, None], ["forward returns shape (3, 1)"]),
        (lambda losses: losses.mean().expand(len(losses)), ["a patient's loss changes when the values"]),
        (lambda losses: losses / len(losses), ["a patient's loss changes when another patient is left out"]),
        (lambda losses: losses.flip(0), ["a patient's loss changes"]),
        (lambda losses: losses + losses.detach().max() * 0, ["not finite"]),
        (lambda losses: losses + torch.rand(()), ["torch's global generator"]),
        (lambda losses: losses * losses.detach().sum(), ["a patient's loss changes"]),
        (  # the same value, another gradient
            lambda losses: losses + (losses - losses.detach()) * losses.detach().roll(1),
            ["a patient's gradient changes when the values of another patient change"],
        ),
        (lambda losses: 1 / 0, ["fails on dummy data (division by zero)"]),
        (lambda losses: losses.detach(), ["does not require grad"]),
        (lambda losses: losses.argsort(), ["forward returns shape (3,)"]),
    ],
)
def test_forms_of_the_loss_that_are_refused(change: object, fragments: list[str]):
    assert_refused(reasons(Wrapped(change), "table"), *fragments)


def test_raising_on_bad_values_is_refused_because_a_crash_tells_about_data():
    def strict(losses: Tensor) -> Tensor:
        if not torch.isfinite(losses).all():
            raise ValueError("loss is not finite")
        return losses

    assert_refused(
        reasons(Wrapped(strict), "table", "opacus"), "(loss is not finite): a crash tells about data"
    )


@engines
def test_dropout_is_refused_for_its_generator(engine: GradEngine):
    assert_refused(reasons(ImageVae(nn.Dropout(0.5)), engine=engine), "torch's global generator")


def test_a_parameter_beside_layers_is_fine_for_our_engines_and_refused_for_opacus_with_the_way_out():
    assert reasons(Scaled(), "table", "vmap") == reasons(Scaled(), "table", "bookkeeping") == ()
    found = reasons(Scaled(), "table", "opacus")
    assert_refused(
        found, "the opacus engine cannot compute its per-patient gradients", "use grad_engine vmap"
    )


def test_a_weight_used_behind_the_layers_back_is_fine_for_vmap_alone():
    class Tied(TableVae):
        def forward(
            self, values: Tensor, covariates: Tensor, latent_noise: Tensor, kl_weight: float
        ) -> Tensor:
            losses = super().forward(values, covariates, latent_noise, kl_weight)
            return losses + values @ self.encoder[0].weight[0, : values.shape[1]]

    assert reasons(Tied(), "table", "vmap") == ()
    assert_refused(
        reasons(Tied(), "table", "opacus"), "gradients of the opacus engine differ from autograd's"
    )
    assert_refused(
        reasons(Tied(), "table", "bookkeeping"),
        "the bookkeeping engine cannot compute its per-patient gradients",
        "encoder.0.weight is used outside of the module that owns it",
        "or use grad_engine vmap",
    )


def test_a_parametric_layer_that_no_engine_can_follow_is_refused_by_name_with_the_way_out():
    class Recurrent(TableVae):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRU(6, 6)  # time on the first axis: records are not where they are looked for

        def forward(self, values: Tensor, *arguments: object) -> Tensor:
            return super().forward(values + self.memory(values[None])[0][0], *arguments)

    found = reasons(Recurrent(), "table")
    assert_refused(
        found,
        "opacus: ",
        "the bookkeeping engine cannot compute its per-patient gradients",
        "memory (GRU) is given a tensor whose first axis does not count records",
        "keep records on the first axis, or use grad_engine vmap",
    )


def test_every_reason_is_given_at_once_and_in_the_message():
    module = Coupled(1.0, "covariance")
    module.encoder[1] = nn.BatchNorm2d(4)
    module.encoder[2] = nn.Dropout(0.2)
    with pytest.raises(IncompatibleModelError) as caught:
        check_model(module, example(SHAPES["image"]), LATENT)
    assert len(caught.value.reasons) >= 5
    assert len(set(caught.value.reasons)) == len(caught.value.reasons)
    assert all(reason in str(caught.value) for reason in caught.value.reasons)
    assert all("; " in reason for reason in caught.value.reasons)  # what is wrong; the way out
    assert str(caught.value).startswith("this model cannot be trained privately: ")
    assert isinstance(caught.value, PrivacyError)


def test_a_model_without_trainable_parameters_is_refused():
    assert_refused(
        reasons(make_module("image").requires_grad_(False)), "no trainable parameters; unfreeze some"
    )


def test_a_shape_that_does_not_fit_is_a_reason_not_a_crash():
    assert_refused(reasons(make_module("table"), "image"), "a training forward pass fails on dummy data")


@pytest.mark.parametrize("bad", [False, True])
def test_the_module_and_the_generators_are_left_as_found(bad: bool):
    module = ImageVae(nn.BatchNorm2d(4)) if bad else make_module("image").eval()
    before, training = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    drawing = ImageVae(nn.Dropout(0.5))
    state = torch.get_rng_state()
    reasons(module)
    reasons(drawing)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert [part.training for part in module.modules()] == training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_no_value_of_the_example_is_read():
    poisoned = Batch(
        values=torch.full((1, 6), torch.nan),
        covariates=torch.full((1, 2), torch.nan),
        patient=torch.zeros(1, dtype=torch.int64),
        num_patients=1,
    )
    check_model(make_module("table"), poisoned, LATENT)


CONFIGURATIONS = sorted((Path(__file__).resolve().parents[3] / "deploy/configs/simulate").glob("*.yaml"))


@engines
@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_every_shipped_model_is_accepted_in_less_than_two_seconds(file: Path, engine: GradEngine):
    experiment = load_experiment(file)
    data = experiment.data
    if data.kind == "phantom":
        shape = (len(data.channels), *data.to_spec().image_shape)
    else:
        shape = (data.features,) if data.kind == "toy" else (62,)
    spec = experiment.model_spec(shape)
    module = build(spec, seed=0)
    reasons(make_module("table"), "table", engine)  # imports
    start = time.process_time()
    check_model(module, example(shape, spec.num_covariates), spec.latent_size, engine=engine)
    assert time.process_time() - start < 2.0


def test_the_dummy_data_are_the_same_each_time():
    seen: list[np.ndarray] = []

    class Watching(TableVae):
        def forward(self, values: Tensor, *arguments: object) -> Tensor:
            seen.append(
                values.detach().numpy().copy() if not torch._C._functorch.is_batchedtensor(values) else None
            )
            return super().forward(values, *arguments)

    for _ in range(2):
        reasons(Watching(), "table", "opacus")
    half = len(seen) // 2
    assert all(
        np.array_equal(one, two, equal_nan=True) for one, two in zip(seen[:half], seen[half:], strict=True)
    )
