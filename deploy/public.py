"""The `public` section: a cohort that is nobody's secret, from which every arm starts.

A model that has seen public data has less to learn from the hospitals, and what it has learnt costs no privacy: that
holds as long as nobody of the public cohort is a patient of a site. `shared_origin` refuses what can be seen to break
it, in the configuration alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from deploy.documents import Key
from deploy.sections import STRICT, Count, Positive, ScheduleName
from deploy.sources import AbideData, Data, DicomData, NiftiData, PhantomData, TableData, ToyData


class Ds030Data(BaseModel):
    """The accepted scans of OpenNeuro ds030 as image-quality metrics, beside `abide`: other scanners, other people.

    Attributes:
        standardise: As for `abide`.
        squash: As for `abide`.
        limit: As for `abide`.
    """

    model_config = STRICT
    kind: Literal["ds030"] = "ds030"
    standardise: Literal["public-ds030", "none"] = "public-ds030"
    squash: Literal["asinh", "clip"] = "asinh"
    limit: Positive = 6.0


class Public(BaseModel):
    """A public cohort and how the initial weights are trained on it, before round 1 and without privacy.

    Attributes:
        data: Of any kind; all its sites are pooled. A hospital's own data belong here only if they are published.
        steps: Optimiser steps; 0 sets the decoder's bias to the public mean, and no more.
        batch_patients: Patients a step.
        learning_rate: Of Adam, at its peak.
        schedule: Of the learning rate, as in `training`.
    """

    model_config = STRICT
    data: Annotated[
        ToyData | PhantomData | AbideData | Ds030Data | NiftiData | DicomData | TableData,
        Field(discriminator="kind"),
    ]
    steps: Annotated[int, Field(ge=0)] = 2000
    batch_patients: Count = 32
    learning_rate: Positive = 1e-3
    schedule: ScheduleName = "cosine"


def shared_origin(public: Public, private: Data) -> Iterator[tuple[Key, str]]:
    """Yield (path within `public.data`, rule) of everything that public and private cohort have in common."""
    one = public.data
    if isinstance(one, PhantomData) and isinstance(private, PhantomData):
        yield from _of_phantoms(one, private)
    elif isinstance(one, ToyData) and isinstance(private, ToyData):
        if one.seed == private.seed:
            yield (
                ("seed",),
                "is the seed of the private cohort: these would be the same people; give another",
            )
    elif isinstance(one, AbideData) and isinstance(private, AbideData):
        both = sorted(set(one.site_names) & set(private.site_names))
        if both:
            yield (("sites",), f"{', '.join(both)}: the patients are the sites' own; name other hospitals")
    else:
        for path, place in _places(one):
            for other in (place for _, place in _places(private)):
                if place == other or place in other.parents or other in place.parents:
                    rule = (
                        f"lies where a site's own data lie ({other}); publish another cohort, or leave it out"
                    )
                    yield path, rule


def _of_phantoms(public: PhantomData, private: PhantomData) -> Iterator[tuple[Key, str]]:
    """Yield what two phantoms have in common: seed, scanners, founders."""
    if public.seed == private.seed:
        yield (("seed",), "is the seed of the private cohort: people would be deformed alike; give another")
    ours = range(public.scanner_offset, public.scanner_offset + public.sites)
    theirs = range(private.scanner_offset, private.scanner_offset + private.sites)
    if max(ours[0], theirs[0]) <= min(ours[-1], theirs[-1]):
        rule = f"gives scanners that the sites use; give {theirs[-1] + 1} or more"
        yield ("scanner_offset",), rule
    if public.founders == private.founders:
        both = _founders(public), _founders(private)
        if None in both or (both[0] or set()) & (both[1] or set()):
            rule = (
                "gives founders that the sites' people descend from; split the folder by founder_subset (and "
                "held_out_founders), or take another"
            )
            yield ("founders",), rule


def _founders(data: PhantomData) -> set[str] | None:
    """Return the founders that are named; None for all there are."""
    if data.founders is None or data.founder_subset is None:
        return None
    return {*data.founder_subset, *(data.held_out_founders or ())}


def _places(data: BaseModel) -> Iterator[tuple[Key, Path]]:
    """Yield where the files of a hospital's own data lie."""
    if isinstance(data, NiftiData | DicomData | TableData):
        for name, site in data.sites.items():
            for field in ("root", "path"):
                if hasattr(site, field):
                    yield ("sites", name, field), Path(getattr(site, field)).resolve()
