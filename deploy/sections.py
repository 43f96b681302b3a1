"""The sections of an experiment's configuration, but its data: field names, ranges, defaults.

Every class here is a frozen pydantic model that takes no unknown key and converts nothing ("3" is no number).
Rules that tie two sections together are in `deploy.rules`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
TrainableNames = Literal["all", "decoder", "encoder", "biases", "last"]
ScheduleName = Literal["constant", "cosine", "linear"]
Arm = Literal[
    "mean", "linear", "linear-dp", "warm-start", "local", "federated", "federated-dp", "centralised"
]


def _from_file(path: str, info: ValidationInfo) -> str:
    """Return a path as an absolute one, counted from the folder of the configuration file."""
    base = (info.context or {}).get("folder")
    given = Path(path).expanduser()
    return str(given if base is None else Path(base, given).resolve())


Location = Annotated[str, Field(min_length=1), AfterValidator(_from_file)]


class Engine(BaseModel):
    """What runs the sites; the result does not depend on it, but for rounding on a GPU.

    Attributes:
        kind: `local`, in this process or in worker processes; `ray`, Flower's simulation engine for many
            machines.
        workers: Processes; `auto` takes one a core, or one a GPU where sites compute on those, at most one a site.
        device: Where sites compute: `auto` takes GPUs if torch sees any. Several are shared out among the processes.
    """

    model_config = STRICT
    kind: Literal["local", "ray"] = "local"
    workers: Count | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Model(BaseModel):
    """The model; see `vae.spec.ModelSpec`.

    Attributes:
        input_shape: (C, *S) of a record, or (F,). A simulation takes it from the data and checks it; a deployment must
            state it, since its server opens no data.
        num_covariates: Likewise, for `cvae`.
    """

    model_config = STRICT
    family: Literal["vae", "beta-vae", "cvae"] = "vae"
    latent_size: Count = 16
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (16, 32, 64)
    beta: Annotated[float, Field(ge=0)] = 1.0
    decoder_scale: Literal["fixed", "learned"] = "fixed"
    initial_scale: Positive = 0.1
    upsampling: Literal["interpolate", "transpose"] = "interpolate"
    output: Literal["linear", "sigmoid"] = "linear"
    input_shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4)] | None = None
    num_covariates: Annotated[int, Field(ge=0)] = 0


class Federation(BaseModel):
    """How updates become a model.

    Attributes:
        rounds: Global rounds.
        strategy: Rule of aggregation.
        sharing: Which parameters travel; the rest stays at its site.
        quorum: Sites needed for a round: a whole number of them, or a fraction of all in (0, 1].
        patience: Rounds in a row that may miss the quorum before the run stops; each is reported as lost.
        deadline_s: Time a site has for a round [s].
        server_learning_rate: Step of the server along the mean update (FedAdam, FedYogi: their learning
            rate).
        proximal_mu: FedProx pull towards the global model; null otherwise.
        trim: Updates cut off at each end of every coordinate by the trimmed mean; null otherwise.
        num_byzantine: Hostile sites that Krum withstands; null otherwise.
        max_update_norm: L2 norm above which an update is refused; null for no bound.
        weight_average: Decay of the average of the global weights over rounds, which is then the final model; rounds go
            on from the weights themselves. Null: the final model is that of the last round.
        weights: Public constant for each site, agreed at enrolment, never derived from counts; empty for
            uniform.
    """

    model_config = STRICT
    rounds: Count = 10
    strategy: Literal["fedavg", "fedprox", "fedadam", "fedyogi", "median", "trimmed-mean", "krum"] = "fedavg"
    sharing: Literal["all", "decoder", "encoder", "norm-local"] = "all"
    quorum: Count | Annotated[float, Field(gt=0, le=1)] = 0.5
    patience: Count = 10
    deadline_s: Positive = 600.0
    server_learning_rate: Positive | None = None
    proximal_mu: Positive | None = None
    trim: Count | None = None
    num_byzantine: Count | None = None
    max_update_norm: Positive | None = None
    weight_average: Share | None = None
    weights: dict[Name, Positive] = {}

    def sites_needed(self, num_sites: int) -> int:
        """Return how many sites a round needs, of `num_sites`."""
        if isinstance(self.quorum, int):
            return self.quorum
        return max(1, math.ceil(self.quorum * num_sites - 1e-9))


class Training(BaseModel):
    """Local training in the arms without privacy; `kl_warmup_rounds` holds for every arm.

    Attributes:
        optimiser: `sgd` or `adam`, fresh in every round.
        learning_rate: Step size [parameter units].
        momentum: Of `sgd`.
        local_steps: Optimiser steps a round and site.
        batch_patients: Patients in a step, expected.
        kl_warmup_rounds: Global rounds over which the weight of the KL term grows from 0 to its full value.
        trainable: Parameters that move: `all`, the `decoder`, the `encoder`, `biases` (with scale and shift of norms),
            or the decoder's `last` level.
        schedule: Of the learning rate, over all steps of the run: `constant`, or from its peak down by a `cosine` or a
            `linear` line.
        warmup_steps: Steps over which the learning rate grows to its peak at first.
        final_share: Of the peak, at the last step of `cosine` and `linear`.
        augmentations: Random versions of each image, beside itself, over which a patient's gradient is averaged; 0 for
            none. A step takes so many times longer. Each version draws a latent of its own.
        max_shift: Of a version, along every axis [voxels]; edges repeat.
        flip: Whether a version may be flipped along the first axis (left and right of a prepared scan).
        max_gain: Of a version: intensities times a factor within 1 - max_gain to 1 + max_gain.
    """

    model_config = STRICT
    optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    local_steps: Count = 10
    batch_patients: Count = 16
    kl_warmup_rounds: Annotated[int, Field(ge=0)] = 0
    trainable: TrainableNames = "all"
    schedule: ScheduleName = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    augmentations: Annotated[int, Field(ge=0, le=64)] = 0
    max_shift: Annotated[int, Field(ge=0, le=64)] = 0
    flip: bool = False
    max_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Privacy(BaseModel):
    """Differential privacy of the arm `federated-dp`. Every value is public: none may be derived from a
    site's data.

    Attributes:
        epsilon: Target of the whole run; the noise is calibrated to it. Either this or `noise_multiplier`.
        noise_multiplier: Standard deviation of the noise, in clip norms.
        delta: Probability with which epsilon may fail; below one over the number of patients.
        sampling_probability: Chance of a patient to be part of a step (Poisson); with bands, of a step of its part.
        local_steps: Steps a round and site.
        max_grad_norm: L2 norm to which a patient's gradient is clipped.
        divisor: Divides the noisy sum: a public guess of the patients in a step, never a count. With bands
            a step samples one of b parts, so it is sampling_probability x patients / b.
        site_divisors: Another divisor for some sites.
        unit: Who is protected: a whole `patient`, or a single `record` (weaker, and labelled so).
        max_records_per_patient: Most records of a patient in a step, drawn anew each time; 1 with `unit:
            record`.
        grad_engine: How per-patient gradients are computed; the result is the same up to rounding. `bookkeeping` is
            the fastest where measured; `vmap` computes any module, `opacus` is the peer to compare with.
        optimiser: As in `training`, for this arm; or `adam-corrected`, freed of the noise in its second moment.
        learning_rate: As in `training`, for this arm.
        momentum: As in `training`, for this arm.
        trainable: As in `training`, for this arm: fewer parameters get less noise in all.
        schedule: As in `training`, for this arm.
        warmup_steps: As in `training`, for this arm.
        final_share: As in `training`, for this arm.
        augmentations: As in `training`, for this arm: averaged before the clip, so that it costs no privacy.
        max_shift: As in `training`, for this arm.
        flip: As in `training`, for this arm.
        max_gain: As in `training`, for this arm.
        moment_floor: Least second moment of `adam-corrected`, in variances of the noise.
        subspace: Public directions in which weights may move, so that noise is drawn for so many numbers alone; 0 for
            all weights. Goes with a `public` section, whose data the directions are made from.
        mechanism: Noise of the steps of a round: `independent`, or `banded`, correlated so that later steps take back
            what earlier ones added, or `discrete`: independent integers, exact to the last bit; patients are computed
            one by one, so it takes longer.
        bands: Of `banded`: steps that are correlated, and parts that patients take turns in; 2 to `local_steps`.
        precision: Of activations: `bf16` goes with `engine.device: cuda`. Norms, clip and noise are as ever.
    """

    model_config = STRICT
    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-5
    sampling_probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    local_steps: Count = 10
    max_grad_norm: Positive = 1.0
    divisor: Positive | None = None
    site_divisors: dict[Name, Positive] = {}
    unit: Literal["patient", "record"] = "patient"
    max_records_per_patient: Count = 8
    grad_engine: Literal["bookkeeping", "vmap", "opacus"] = "bookkeeping"
    optimiser: Literal["sgd", "adam", "adam-corrected"] = "adam"
    learning_rate: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    trainable: TrainableNames = "all"
    schedule: ScheduleName = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    augmentations: Annotated[int, Field(ge=0, le=64)] = 0
    max_shift: Annotated[int, Field(ge=0, le=64)] = 0
    flip: bool = False
    max_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    moment_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    subspace: Annotated[int, Field(ge=0, le=1024)] = 0
    precision: Literal["float32", "bf16"] = "float32"
    mechanism: Literal["independent", "banded", "discrete"] = "independent"
    bands: Annotated[int, Field(ge=1, le=1024)] = 1

    def divisor_of(self, site: str) -> float:
        """Return the divisor of a site.

        Raises:
            ValueError: there is none; a loaded configuration has one for every site it names.
        """
        found = self.site_divisors.get(site, self.divisor)
        if found is None:
            raise ValueError(f"privacy.divisor: none for {site}")
        return found


class Budget(BaseModel):
    """What the virtual hospitals allow, kept in ledgers as real ones keep it; without this section nobody counts.

    A site whose patients have spent its cap refuses.

    Attributes:
        epsilon: Cap of every site, at `privacy.delta`, over everything in its ledger; null for none.
        sites: Another cap for some sites.
        ledgers: Folder of the ledgers; experiments that share it share what is spent. Default: the run's own folder.
    """

    model_config = STRICT
    epsilon: Positive | None = None
    sites: dict[Name, Positive] = {}
    ledgers: Location | None = None

    def cap_of(self, site: str) -> float | None:
        """Return the cap of a site, None if it has none."""
        return self.sites.get(site, self.epsilon)


class Audit(BaseModel):
    """A bound on epsilon from below, measured in a training job of its own with the plan of the arm `federated-dp`.

    Canaries join the patients of one site, and are guessed from what the job releases.

    Attributes:
        canaries: Made-up patients, each let in by a coin; more show more and cost more time.
        confidence: Of the bound.
        max_steps: Audit so many steps at most, against the epsilon of those.
    """

    model_config = STRICT
    canaries: Annotated[int, Field(ge=100, le=20_000)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    max_steps: Count = 2000


class SiteFaults(BaseModel):
    """What goes wrong at one site, on purpose.

    Attributes:
        update: How its update is spoiled.
        crash: It raises an exception instead of answering.
        drop: It does not answer.
        delay_s: It answers late [s].
        bandwidth_mbit: It sends slowly [Mbit/s].
        rounds: In which rounds, from 1.
    """

    model_config = STRICT
    update: Literal["nan", "inf", "huge", "wrong-shape", "renamed", "stale", "corrupt"] | None = None
    crash: bool = False
    drop: bool = False
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    bandwidth_mbit: Positive | None = None
    rounds: Annotated[tuple[Count, ...], Field(min_length=1)] | Literal["all"] = "all"

    def active(self, round_number: int) -> bool:
        """Return whether the site is at fault in a round."""
        return self.rounds == "all" or round_number in self.rounds

    @property
    def harmless(self) -> bool:
        """Return whether nothing goes wrong at all."""
        wrong = (self.update, self.crash, self.drop, self.delay_s, self.bandwidth_mbit)
        return not any(wrong)


class Faults(BaseModel):
    """Faults to inject: a drop-out probability for every site and round, and faults of single sites by
    name.
    """

    model_config = ConfigDict(**{**STRICT, "extra": "allow"})
    __pydantic_extra__: dict[str, SiteFaults] = Field(init=False)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def sites(self) -> dict[str, SiteFaults]:
        """Return the faults by site."""
        return dict(self.__pydantic_extra__ or {})


class Linear(BaseModel):
    """The linear baselines, arms `linear` and `linear-dp`: probabilistic PCA. Every value is public.

    The number of a site's patients is taken as `privacy.divisor / privacy.sampling_probability`.

    Attributes:
        components: Directions that the model keeps, at most.
        coordinates: Directions among which `linear-dp` looks for them: of the public cohort, else smooth cosines. The
            noise on each grows with their number.
        mean_share: Of the budget, for the mean; the rest is for the spread.
        mean_norm: To which a record's deviation from the centre is clipped for the mean [norm of a record's values];
            null to take it from the public cohort.
        spread_norm: Likewise, for the spread.
    """

    model_config = STRICT
    components: Count = 16
    coordinates: Annotated[int, Field(ge=1, le=4096)] = 64
    mean_share: Share = 0.5
    mean_norm: Positive | None = None
    spread_norm: Positive | None = None


class Report(BaseModel):
    """What the report shows: resamples of the bootstrap intervals, and example images."""

    model_config = STRICT
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    panels: Annotated[int, Field(ge=0, le=64)] = 4
