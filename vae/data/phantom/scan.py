"""One person's visits to the scanner: images, masks and true factors, as arrays.

Anatomy is computed once for all visits; degrees of an anomaly reuse it, and the same noise, so that a
simulated image differs from its healthy original by the anomaly alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vae.data.phantom import scanner as scanners
from vae.data.phantom.anatomy import Body, Scene, image_lattice, pad_slices
from vae.data.phantom.deform import smooth_field
from vae.data.phantom.disease import hypometabolic_weight, lesion_maps
from vae.data.phantom.founder import Founder
from vae.data.phantom.person import Person, generator
from vae.data.phantom.spec import CHANNELS, PhantomSpec

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LESIONS = "wml"
"""Name of the anomaly simulated on cohorts without PET."""

_PURPOSES = {channel: number + 1 for number, channel in enumerate(CHANNELS)}
_LESION_PURPOSE = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Anomaly:
    """One simulated anomaly at one degree.

    Attributes:
        name: Disease, or `LESIONS`.
        degree: Percent.
        images: [V, X, Y, Z] float32 by channel: those that differ from the healthy ones.
        mask: [V, X, Y, Z] where the image was changed.
    """

    name: str
    degree: int
    images: Mapping[str, Array]
    mask: Mask


@dataclass(frozen=True, kw_only=True, eq=False)
class Scans:
    """All visits of a person.

    Attributes:
        images: [V, X, Y, Z] float32 by channel; for a diseased person, with the disease.
        brain: [V, X, Y, Z] brain mask.
        disease: [V, X, Y, Z] where a diseased person loses uptake; None in health.
        anomalies: Simulated on the test patients, else empty.
        volumes: True volumes at each visit [mL].
    """

    images: Mapping[str, Array]
    brain: Mask
    disease: Mask | None
    anomalies: tuple[Anomaly, ...]
    volumes: list[dict[str, float]]


def anomaly_names(spec: PhantomSpec) -> tuple[str, ...]:
    """Return the anomalies simulated on test patients: patterns of hypometabolism, or lesions without PET."""
    return spec.hypometabolism if "pet" in spec.channels else (LESIONS,)


def scan_person(spec: PhantomSpec, person: Person, founder: Founder, *, site: int) -> Scans:
    """Scan a person at every visit on the site's scanner.

    Args:
        spec: The cohort.
        person: Whom.
        founder: The person's founder.
        site: Where, 0-based.
    """
    body = Body(person, founder)
    lattice = image_lattice(spec)
    margin = 0 if spec.slab is None else int(np.ceil(9.0 / spec.voxel_mm))
    scene = body.scene(pad_slices(lattice, margin), _maps_needed(spec, person))
    visit = _Session(spec=spec, person=person, site=site, scene=scene, margin=margin)
    images = {channel: visit.image(channel) for channel in spec.channels}
    disease = None
    if person.group == "diseased" and "pet" in images:
        degrees = [person.trajectory.severity(age) * person.hypometabolism for age in person.ages]
        loss = (np.array(degrees) / 100).astype(np.float32)[:, None, None, None]
        weight, disease = visit.pattern("ad")
        images["pet"] = np.asarray(images["pet"] * (1 - weight * loss), dtype=np.float32)
    return Scans(
        images=images,
        brain=visit.cut(visit.maps["brain"]) > 0.5,
        disease=disease,
        anomalies=visit.anomalies(images) if person.group == "test" else (),
        volumes=body.volumes(),
    )


def _maps_needed(spec: PhantomSpec, person: Person) -> tuple[str, ...]:
    """Return the founder's maps, beside the tissues, that these images need."""
    names: list[str] = []
    if "pet" in spec.channels:
        names.append("uptake")
        diseases = {"test": spec.hypometabolism, "diseased": ("ad",)}.get(person.group, ())
        names += [f"pattern_{disease}" for disease in diseases]
    if {"t1w", "t2w"} & set(spec.channels):
        names.append("texture")
        if person.group == "test" and "pet" not in spec.channels:
            names.append("lesion_prior")
    return tuple(names)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Session:
    """A person in a scanner: what every image of theirs shares."""

    spec: PhantomSpec
    person: Person
    site: int
    scene: Scene
    margin: int

    @property
    def maps(self) -> dict[str, Array]:
        """Return the maps [V, X, Y, Z + 2 margin] as arrays (no copies)."""
        return {name: value.numpy() for name, value in self.scene.maps.items()}

    def cut(self, values: Array) -> Array:
        """Cut the extra slices away."""
        return values[..., self.margin : values.shape[-1] - self.margin]

    def image(self, channel: str, lesion: Array | None = None) -> Array:
        """Return the images of one channel [V, X, Y, Z]; the same noise at every call."""
        machine = scanners.scanner(self.spec.scanner_offset + self.site)
        own = {name: value.numpy() for name, value in self.scene.own.items()}
        streams = [
            generator(self.spec, site=self.site, index=self.person.index, visit=v, purpose=_PURPOSES[channel])
            for v in range(len(self.person.ages))
        ]
        if channel == "pet":
            return scanners.pet(
                machine,
                maps=self.maps,
                own=own,
                streams=streams,
                spacing=self.spec.voxel_mm,
                margin=self.margin,
            )
        contrast = self.person.contrast[0 if channel == "t1w" else 1]
        return scanners.mri(
            machine,
            channel,
            maps=self.maps,
            own=own,
            contrast=contrast,
            streams=streams,
            spacing=self.spec.voxel_mm,
            margin=self.margin,
            lesion=lesion,
        )

    def pattern(self, disease: str) -> tuple[Array, Mask]:
        """Return the smoothed and the binary mask of a disease, [V, X, Y, Z]."""
        membership = self.maps[f"pattern_{disease}"]
        weight = self.cut(hypometabolic_weight(membership, spacing=self.spec.voxel_mm))
        return weight, self.cut(membership) >= 0.5

    def anomalies(self, healthy: Mapping[str, Array]) -> tuple[Anomaly, ...]:
        """Simulate every anomaly at every degree."""
        if "pet" not in self.spec.channels:
            return self._lesions()
        found = []
        for disease in self.spec.hypometabolism:
            weight, mask = self.pattern(disease)
            for degree in self.spec.degrees:
                image = healthy["pet"] * (1 - weight * np.float32(degree / 100))
                found.append(Anomaly(name=disease, degree=degree, images={"pet": image}, mask=mask))
        return tuple(found)

    def _lesions(self) -> tuple[Anomaly, ...]:
        """Simulate white-matter lesions at every load, on T1w and T2w alike."""
        rng = generator(self.spec, site=self.site, index=self.person.index, purpose=_LESION_PURPOSE)
        rough = smooth_field(rng.standard_normal((1, 14, 14, 14)), self.scene.lattice.shape)[0]
        maps = self.maps
        masks = lesion_maps(maps["lesion_prior"], maps["white"], rough, self.spec.degrees)
        return tuple(
            Anomaly(
                name=LESIONS,
                degree=load,
                images={channel: self.image(channel, lesion=mask) for channel in self.spec.channels},
                mask=self.cut(mask) > 0.5,
            )
            for load, mask in zip(self.spec.degrees, masks, strict=True)
        )
