"""Rules that tie fields together: what a single field's type and range cannot say.

Every function takes the sections that are valid by themselves (a missing one is skipped, its own problems are
reported elsewhere) and returns problems; nothing stops at the first.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from deploy.documents import Document, Key
from deploy.errors import Problem
from deploy.problems import at, nearest
from deploy.public import Ds030Data, Public, shared_origin
from deploy.sections import Engine, Faults, Federation, Linear, Model, Privacy, Training
from deploy.sources import Data, OwnData
from vae.errors import VaeError
from vae.spec import NOTHING_TRAVELS

Sections = Mapping[str, Any]
Rule = Callable[[Sections, Document], Iterator[Problem]]


def check(sections: Sections, document: Document) -> list[Problem]:
    """Return every problem between fields of the given sections."""
    rules: tuple[Rule, ...] = (
        _data,
        _public,
        _model,
        _strategy,
        _quorum,
        _privacy,
        _mechanism,
        _arms,
        _trainable,
        _schedule,
        _augmentations,
        _subspace,
        _named_sites,
        _fault_rounds,
        _budget,
    )
    return [problem for rule in rules for problem in rule(sections, document)]


def _data(sections: Sections, document: Document) -> Iterator[Problem]:
    """The data section builds what it describes."""
    data: Data | None = sections.get("data")
    if data is not None:
        yield from _builds(data, ("data",), document)


def _builds(data: Data, section: Key, document: Document) -> Iterator[Problem]:
    """The data of a section can be described to what opens them."""
    builds: dict[Key, Callable[[], Any]]
    if isinstance(data, OwnData):
        builds = {(*section, "sites", name): site.to_spec for name, site in data.sites.items()}
    else:
        builds = {section: data.to_spec}
    for path, build in builds.items():
        try:
            build()
        except (VaeError, ValueError) as error:
            yield at(document, path, str(error), show_value=False)


def _public(sections: Sections, document: Document) -> Iterator[Problem]:
    """Public data have nothing in common with the sites' own, and all that is trained on them is shared."""
    public: Public | None = sections.get("public")
    arms = sections.get("arms")
    if public is None:
        if arms and "warm-start" in arms and "public" in sections:
            yield at(document, ("arms",), "warm-start needs a `public` section", show_value=False)
        return
    if not isinstance(public.data, Ds030Data):
        yield from _builds(public.data, ("public", "data"), document)
    data: Data | None = sections.get("data")
    if data is not None:
        for path, rule in shared_origin(public, data):
            yield at(document, ("public", "data", *path), rule)
    federation: Federation | None = sections.get("federation")
    if federation is not None and federation.sharing != "all":
        rule = "must be `all` with a `public` section: what is not shared would not start from the public weights"
        yield at(document, ("federation", "sharing"), rule)


def _model(sections: Sections, document: Document) -> Iterator[Problem]:
    """Family, beta, covariates and the depth of the network go together and with the data."""
    model: Model | None = sections.get("model")
    if model is None:
        return
    if model.family != "beta-vae" and model.beta != 1.0:
        yield at(document, ("model", "beta"), "other than 1 goes with `family: beta-vae` alone")
    data = sections.get("data")
    if data is None:
        return
    if model.family == "cvae" and not _num_covariates(data):
        yield at(
            document, ("model", "family"), f"needs covariates, and data of kind {data.kind} here have none"
        )
    size = _smallest_axis(data)
    if size is not None and size <= 2 ** len(model.channels):
        rule = f"too many: each halves the image, and its smallest axis of {size} voxels must stay above 1"
        yield at(document, ("model", "channels"), rule)


def _strategy(sections: Sections, document: Document) -> Iterator[Problem]:
    """The constants of a strategy are given with it, and only with it."""
    federation: Federation | None = sections.get("federation")
    if federation is None:
        return
    owners = {"proximal_mu": "fedprox", "trim": "trimmed-mean", "num_byzantine": "krum"}
    for field, owner in owners.items():
        given = getattr(federation, field) is not None
        if federation.strategy == owner and not given:
            yield at(document, ("federation", field), f"is required by `strategy: {owner}`", show_value=False)
        if given and federation.strategy != owner:
            yield at(document, ("federation", field), f"goes with `strategy: {owner}` alone; remove it")
    robust = ("median", "trimmed-mean", "krum")
    if federation.weights and federation.strategy in robust:
        rule = f"`strategy: {federation.strategy}` counts every site alike; remove the weights"
        yield at(document, ("federation", "weights"), rule, show_value=False)


def _quorum(sections: Sections, document: Document) -> Iterator[Problem]:
    """The quorum can be reached, and leaves a robust strategy enough updates."""
    federation: Federation | None = sections.get("federation")
    data = sections.get("data")
    if federation is None or data is None:
        return
    count = len(data.site_names)
    needed = federation.sites_needed(count)
    if needed > count:
        yield at(document, ("federation", "quorum"), f"there are only {count} sites")
    limits = {"krum": ("num_byzantine", 3), "trimmed-mean": ("trim", 1)}
    field, more = limits.get(federation.strategy, ("", 0))
    withstood = getattr(federation, field) if field else None
    if withstood is not None and count < 2 * withstood + more:
        rule = f"needs 2 x {withstood} + {more} = {2 * withstood + more} sites or more; there are {count}"
        yield at(document, ("federation", field), rule)


def _privacy(sections: Sections, document: Document) -> Iterator[Problem]:
    """Exactly one of target and noise; a divisor for every site."""
    privacy: Privacy | None = sections.get("privacy")
    if privacy is None:
        return
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        rule = "give exactly one of `epsilon` (the noise is calibrated to it) and `noise_multiplier`"
        yield at(document, ("privacy",), rule, show_value=False)
    data = sections.get("data")
    if privacy.divisor is None and data is not None:
        lacking = [name for name in data.site_names if name not in privacy.site_divisors]
        if lacking:
            rule = (
                "is required: a public constant near sampling_probability x the patients that a site is "
                f"known to have, or give site_divisors for {_few(lacking)} too"
            )
            yield at(document, ("privacy", "divisor"), rule, show_value=False)
    if privacy.unit == "record" and privacy.max_records_per_patient != 1:
        yield at(document, ("privacy", "max_records_per_patient"), "must be 1 with `unit: record`")
    if privacy.optimiser != "sgd" and privacy.momentum:
        yield at(document, ("privacy", "momentum"), "goes with `optimiser: sgd` alone")
    engine: Engine | None = sections.get("engine")
    if privacy.precision == "bf16" and engine is not None and engine.device != "cuda":
        rule = f"goes with `engine.device: cuda`, not with `{engine.device}`: on a CPU it would only be less exact"
        yield at(document, ("privacy", "precision"), rule)
    if privacy.optimiser != "adam-corrected" and _is_set(privacy, "moment_floor"):
        yield at(
            document, ("privacy", "moment_floor"), "goes with `optimiser: adam-corrected` alone; remove it"
        )


def _mechanism(sections: Sections, document: Document) -> Iterator[Problem]:
    """Integers need each patient's gradient; bands go with noise that has them, fit into a round, and with the rest."""
    privacy: Privacy | None = sections.get("privacy")
    if privacy is None:
        return
    if privacy.mechanism != "banded":
        if privacy.bands != 1:
            yield at(document, ("privacy", "bands"), "goes with `mechanism: banded` alone; remove it")
        if privacy.mechanism == "discrete" and privacy.grad_engine == "bookkeeping":
            rule = "must be `vmap` or `opacus` with `mechanism: discrete`, which rounds each patient's own gradient"
            yield at(document, ("privacy", "grad_engine"), rule)
        return
    if not 2 <= privacy.bands <= privacy.local_steps:
        rule = (
            f"must be from 2 to local_steps ({privacy.local_steps}) with `mechanism: banded`: patients take turns in "
            "so many parts, and each part has to come up in a round"
        )
        yield at(document, ("privacy", "bands"), rule)
    if privacy.optimiser == "adam-corrected":
        rule = "must be `sgd` or `adam` with `mechanism: banded`: what it corrects for is the same noise in every step"
        yield at(document, ("privacy", "optimiser"), rule)
    if sections.get("audit") is not None:
        rule = (
            "does not go with `privacy.mechanism: banded`: the attacks take steps for independent; remove it"
        )
        yield at(document, ("audit",), rule, show_value=False)


def _arms(sections: Sections, document: Document) -> Iterator[Problem]:
    """An arm is named once, and can run."""
    arms = sections.get("arms")
    for arm, times in Counter(arms or ()).items():
        if times > 1:
            yield at(document, ("arms",), f"{arm} is given {times} times", show_value=False)
    if arms and "federated-dp" in arms and "privacy" in sections and sections["privacy"] is None:
        yield at(document, ("arms",), "federated-dp needs a `privacy` section", show_value=False)
    if arms and "linear-dp" in arms and "privacy" in sections:
        yield from _linear_dp(sections, document)
    training = sections.get("training")
    if training is not None and training.optimiser == "adam" and training.momentum:
        yield at(document, ("training", "momentum"), "goes with `optimiser: sgd` alone")


def _linear_dp(sections: Sections, document: Document) -> Iterator[Problem]:
    """The private linear baseline costs what the private arm does, and clips by public constants."""
    privacy: Privacy | None = sections["privacy"]
    if privacy is None or privacy.epsilon is None or privacy.unit != "patient":
        rule = "linear-dp needs `privacy.epsilon` with `unit: patient`: it is calibrated to the same budget"
        yield at(document, ("arms",), rule, show_value=False)
    linear: Linear | None = sections.get("linear")
    if linear is not None and sections.get("public", ...) is None:
        for field in ("mean_norm", "spread_norm"):
            if getattr(linear, field) is None:
                rule = "is required by linear-dp without a `public` section: a public constant, never a statistic"
                yield at(document, ("linear", field), rule, show_value=False)


def _trainable(sections: Sections, document: Document) -> Iterator[Problem]:
    """Some of what is trained is shared: or else sites would send updates that change nothing."""
    federation: Federation | None = sections.get("federation")
    for name in ("training", "privacy"):
        section: Training | Privacy | None = sections.get(name)
        if federation is None or section is None:
            continue
        if (federation.sharing, section.trainable) in NOTHING_TRAVELS:
            rule = (
                f"trains nothing that `federation.sharing: {federation.sharing}` lets travel, so no update would "
                "change anything; train `all` or `biases`, or share what is trained"
            )
            yield at(document, (name, "trainable"), rule)


def _schedule(sections: Sections, document: Document) -> Iterator[Problem]:
    """A schedule comes to its peak within the run, and its settings have an effect."""
    federation: Federation | None = sections.get("federation")
    for name in ("training", "privacy"):
        section: Training | Privacy | None = sections.get(name)
        if section is None:
            continue
        if section.schedule == "constant" and _is_set(section, "final_share"):
            rule = "goes with `schedule: cosine` or `linear` alone; remove it"
            yield at(document, (name, "final_share"), rule)
        steps = section.local_steps * (1 if federation is None else federation.rounds)
        if federation is not None and section.warmup_steps and section.warmup_steps >= steps:
            rule = f"must be below the {steps} steps of the run (local_steps x rounds), or the peak is never reached"
            yield at(document, (name, "warmup_steps"), rule)


def _augmentations(sections: Sections, document: Document) -> Iterator[Problem]:
    """Only images have versions, which are within the image; what a version differs in is given with their number."""
    data: Data | None = sections.get("data")
    for name in ("training", "privacy"):
        section: Training | Privacy | None = sections.get(name)
        if section is None:
            continue
        for field in ("max_shift", "flip", "max_gain"):
            if _is_set(section, field) and not section.augmentations:
                yield at(document, (name, field), "goes with `augmentations` above 0 alone; remove it")
        if data is None or not section.augmentations:
            continue
        size = _smallest_axis(data)
        if size is None:
            rule = f"must be 0: data of kind {data.kind} are tables, and versions are made of images"
            yield at(document, (name, "augmentations"), rule)
        elif section.max_shift >= size:
            rule = f"must be below the smallest axis of {size} voxels, or nothing of the image is left"
            yield at(document, (name, "max_shift"), rule)


def _subspace(sections: Sections, document: Document) -> Iterator[Problem]:
    """Directions are made from public data, and private gradients are projected on them by one engine."""
    privacy: Privacy | None = sections.get("privacy")
    if privacy is None or not privacy.subspace:
        return
    if sections.get("public") is None:
        rule = (
            "needs a `public` section: its directions are gradients of public patients, and of private ones they "
            "would tell; add the section, or set it to 0 and train fewer parameters with `trainable`"
        )
        yield at(document, ("privacy", "subspace"), rule)
    if privacy.grad_engine != "vmap":
        yield at(document, ("privacy", "grad_engine"), "must be `vmap` with a `subspace`")
    if sections.get("audit") is not None:
        rule = "goes not with `privacy.subspace`: the job that is attacked trains weights, not directions; remove it"
        yield at(document, ("audit",), rule, show_value=False)


def _named_sites(sections: Sections, document: Document) -> Iterator[Problem]:
    """Sites that are named somewhere exist; weights are given to all of them or to none."""
    data: Data | None = sections.get("data")
    if data is None:
        return
    known = data.site_names
    places: tuple[Key, ...] = (
        ("federation", "weights"),
        ("privacy", "site_divisors"),
        ("budget", "sites"),
        ("faults",),
    )
    for path in places:
        others = ("dropout",) if path == ("faults",) else ()
        for site in _keys(document.value, path):
            if site not in (*known, *others):
                found = at(
                    document, (*path, site), f"there is no such site; sites: {_few(known)}", show_value=False
                )
                yield dataclasses.replace(found, suggestion=nearest(site, (*known, *others)))
    weights = _keys(document.value, ("federation", "weights"))
    lacking = [site for site in known if site not in weights]
    if lacking and len(lacking) < len(known):
        rule = f"give a weight to every site or to none; {_few(lacking)} lack one"
        yield at(document, ("federation", "weights"), rule, show_value=False)


def _fault_rounds(sections: Sections, document: Document) -> Iterator[Problem]:
    """A fault does something, in rounds that happen."""
    faults: Faults | None = sections.get("faults")
    federation: Federation | None = sections.get("federation")
    for site, fault in (faults.sites if faults else {}).items():
        if fault.harmless:
            rule = "names no fault: give update, crash, drop, delay_s or bandwidth_mbit"
            yield at(document, ("faults", site), rule, show_value=False)
        if federation is not None and fault.rounds != "all" and max(fault.rounds) > federation.rounds:
            rule = f"there are only {federation.rounds} rounds"
            yield at(document, ("faults", site, "rounds"), rule)


def _budget(sections: Sections, document: Document) -> Iterator[Problem]:
    """Budget and audit go with a private arm, whose unit is the patient."""
    for name in ("budget", "audit"):
        if sections.get(name) is not None and "privacy" in sections and sections["privacy"] is None:
            yield at(document, (name,), "goes with a `privacy` section alone", show_value=False)
    privacy: Privacy | None = sections.get("privacy")
    if sections.get("budget") is not None and privacy is not None and privacy.unit != "patient":
        rule = "must be `patient` with a `budget`: a ledger adds up what is spent on a patient"
        yield at(document, ("privacy", "unit"), rule)


def _is_set(section: BaseModel, field: str) -> bool:
    """Return whether a field is not what it is by default."""
    return bool(getattr(section, field) != type(section).model_fields[field].default)


def _keys(value: Any, path: Key) -> list[str]:  # noqa: ANN401 - JSON
    """Return the keys of the dictionary at a path as it is in the file; none if there is no dictionary."""
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return list(value) if isinstance(value, dict) else []


def _num_covariates(data: Data) -> int:
    """Return whether records of this data come with covariates: a count, or 1 for `some`."""
    if data.kind == "toy":
        return int(data.covariates)
    if data.kind == "abide":
        return 0
    if data.kind == "phantom":
        return 1
    return min(len(site.covariates) for site in data.sites.values())


def _smallest_axis(data: Data) -> int | None:
    """Return the smallest spatial axis of a record [voxels]; None for tables."""
    if data.kind == "phantom":
        return data.size if data.slab in (None, 1) else min(data.size, data.slab)
    if data.kind in ("nifti", "dicom"):
        return min(size for site in data.sites.values() for size in site.preparation.shape)
    return None


def _few(names: Sequence[str], most: int = 6) -> str:
    """Return the first names of a list as text."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
