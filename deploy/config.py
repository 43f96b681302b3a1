"""An experiment: one YAML file -> one frozen `Experiment`, or every problem of the file at once.

Guarantees (tests/unit/deploy/test_config.py): no unknown key, no duplicate key, no silent conversion, nothing
that depends on another field left unchecked; the resolved file loads to an equal experiment; the hash is the
same for every engine, so that a run may be resumed on another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from deploy.documents import Document, dump_yaml, load_document
from deploy.errors import Problem
from deploy.overrides import apply_overrides
from deploy.public import Public
from deploy.rules import check
from deploy.sections import (
    STRICT,
    Arm,
    Audit,
    Budget,
    Engine,
    Faults,
    Federation,
    Linear,
    Model,
    Name,
    Privacy,
    Report,
    Training,
)
from deploy.sources import Data
from deploy.validation import schema_of, validate_document

if TYPE_CHECKING:
    from vae.spec import ModelSpec

__all__ = ["Experiment", "apply_overrides", "json_schema", "load_experiment", "validate"]

_NOT_HASHED = ("name", "engine", "arms", "report", "audit", "linear")
_ADDED_TO_BOTH = (
    "trainable", "schedule", "warmup_steps", "final_share", "augmentations", "max_shift", "flip", "max_gain",
)  # fmt: skip
_ADDED: Mapping[str, tuple[str, ...]] = {
    "federation": ("weight_average",),
    "training": _ADDED_TO_BOTH,
    "privacy": (*_ADDED_TO_BOTH, "moment_floor", "precision", "subspace", "mechanism", "bands"),
}
"""Fields that came later, by section. At their default they are not hashed: the hash seeds a run, and one of before has
to give the same bits."""


def _all_arms(fields: dict[str, Any]) -> tuple[Arm, ...]:
    """Return every arm that an experiment can run: `federated-dp` with a privacy section, `warm-start` with a
    public one.
    """
    public: tuple[Arm, ...] = ("warm-start",) if fields.get("public") is not None else ()
    private: tuple[Arm, ...] = ("federated-dp",) if fields.get("privacy") is not None else ()
    return ("mean", *public, "local", "federated", *private, "centralised")


class Experiment(BaseModel):
    """Everything that decides a simulated federation; built by `load_experiment`.

    Attributes:
        name: Appears in the report.
        seed: Root of all randomness of a simulation.
        engine: What runs the sites.
        data: Whose data; tells its kind by `kind`.
        public: Public data that every arm starts from, or None.
        model: The model.
        federation: How updates become a model.
        training: Local training without privacy.
        privacy: Privacy of the arm `federated-dp`, or None.
        arms: What is trained and compared.
        budget: What the virtual hospitals allow, or None.
        linear: How the linear baselines are made.
        audit: Whether and how epsilon is bounded from below, or None.
        faults: What goes wrong on purpose.
        report: What the report shows.
    """

    model_config = STRICT
    name: Name = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    engine: Engine = Engine()
    data: Data
    public: Public | None = None
    model: Model = Model()
    federation: Federation = Federation()
    training: Training = Training()
    privacy: Privacy | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = Field(default_factory=_all_arms)
    budget: Budget | None = None
    linear: Linear = Linear()
    audit: Audit | None = None
    faults: Faults = Faults()
    report: Report = Report()

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites, in their order."""
        return self.data.site_names

    def model_spec(self, input_shape: Sequence[int], num_covariates: int = 0) -> ModelSpec:
        """Return the model for data of a given shape.

        Args:
            input_shape: Of one record: (F,), (C, H, W) or (C, D, H, W).
            num_covariates: Of the cohorts; used by `cvae` alone.

        Raises:
            ModelSpecError: model and data do not go together.
        """
        from vae.errors import ModelSpecError
        from vae.spec import ModelSpec

        stated = self.model.input_shape
        if stated is not None and stated != tuple(input_shape):
            raise ModelSpecError(
                f"model.input_shape is {list(stated)}, records are {list(input_shape)}; state theirs, or leave it out"
            )
        used = num_covariates if self.model.family == "cvae" else 0
        fields = self.model.model_dump(exclude={"input_shape", "num_covariates"})
        return ModelSpec(input_shape=tuple(input_shape), num_covariates=used, **fields)

    def resolved_yaml(self) -> str:
        """Return a file with every field written out, which loads to an equal experiment."""
        return dump_yaml(self.model_dump(mode="json"))

    def hash(self) -> str:
        """Return the SHA-256 of the canonical JSON of everything that decides the trained weights.

        Left out: the engine (weights are equal on all, up to rounding on GPUs), the name, the list of arms, the linear
        baselines, audit and report, and options that are not used: a section that is not there, and fields of `_ADDED`
        at their default.
        """
        unused = {name for name in ("budget", "public") if getattr(self, name) is None}
        fields = self.model_dump(mode="json", exclude={*_NOT_HASHED, *unused})
        for name, added in _ADDED.items():
            section = getattr(self, name)
            for option in added if section is not None else ():
                if getattr(section, option) == type(section).model_fields[option].default:
                    del fields[name][option]
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment that a file describes.

    Args:
        path: A YAML file.
        overrides: `key=value` each, such as `federation.rounds=5`; the value is YAML.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document, problems = apply_overrides(load_document(path), overrides)
    return validate(document, folder=Path(path).parent, problems=problems)


def validate(document: Document, *, folder: Path, problems: Sequence[Problem] = ()) -> Experiment:
    """Return the experiment that a document describes.

    Args:
        document: As read.
        folder: Relative paths count from here.
        problems: Already known ones, reported with the rest.

    Raises:
        ConfigError: with every problem.
    """
    return validate_document(document, Experiment, check, folder=folder, problems=problems)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration, for editors."""
    return schema_of(Experiment)
