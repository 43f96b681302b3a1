"""The `data` section: which kind of data, and for a hospital's own data where each site's lies.

Mirrors the data classes of `vae.data` field by field (tests/unit/deploy/test_sources.py keeps them equal), so
that a file can be checked without opening any data. `to_spec` and `to_specs` build those classes, importing
them only then. Relative paths count from the folder of the configuration file.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from deploy.sections import STRICT, Count, Location, Name, Positive, Share

if TYPE_CHECKING:
    from vae.data.abide import AbideSpec
    from vae.data.dicom import DicomSource
    from vae.data.nifti import NiftiSource
    from vae.data.phantom.spec import PhantomSpec
    from vae.data.prepare import Preparation
    from vae.data.tabular import TableSource
    from vae.data.toy import ToySpec

Whole = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Pair = tuple[float, float]


@functools.lru_cache(maxsize=16)
def _numbered(sites: int) -> tuple[str, ...]:
    """Return the names of virtual sites; kept, since each site of many asks for them."""
    return tuple(f"site-{index + 1}" for index in range(sites))


class ToyData(BaseModel):
    """A small table drawn from a Gaussian with few factors: for smoke runs, benchmarks and tests."""

    model_config = STRICT
    kind: Literal["toy"] = "toy"
    sites: Count = 3
    patients_per_site: Annotated[int, Field(ge=2)] = 32
    records: tuple[Count, Count] = (1, 3)
    features: Annotated[int, Field(ge=2)] = 8
    covariates: Whole = 0
    seed: Whole = 0

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites."""
        return _numbered(self.sites)

    def to_spec(self) -> ToySpec:
        """Return the specification for `vae.data.toy`."""
        from vae.data.toy import ToySpec

        return ToySpec(**self.model_dump(exclude={"kind"}))


class PhantomData(BaseModel):
    """Virtual hospitals with synthetic people; see `vae.data.phantom.spec.PhantomSpec` for every field."""

    model_config = STRICT
    kind: Literal["phantom"] = "phantom"
    sites: Count = 4
    patients_per_site: Annotated[int, Field(ge=2)] = 56
    test_patients_per_site: Count = 10
    visits: tuple[Count, Count] = (1, 3)
    size: Annotated[int, Field(ge=8, le=320)] = 48
    voxel_mm: Positive = 4.0
    channels: Annotated[tuple[Literal["t1w", "t2w", "pet"], ...], Field(min_length=1)] = ("pet",)
    slab: Count | None = None
    founders: Location | None = None
    founder_subset: tuple[Text, ...] | None = None
    held_out_founders: tuple[Text, ...] | None = None
    scanner_offset: Whole = 0
    degrees: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(min_length=1)] = (10, 20, 30, 50)
    hypometabolism: tuple[Literal["ad", "bvftd", "lvppa", "nfvppa", "pca", "svppa"], ...] = ("ad",)
    diseased_patients_per_site: Whole = 0
    seed: Whole = 0

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites."""
        return _numbered(self.sites)

    def to_spec(self) -> PhantomSpec:
        """Return the specification for `vae.data.phantom`.

        Raises:
            DataError: fields contradict each other.
        """
        from vae.data.phantom.spec import PhantomSpec

        return PhantomSpec(**self.model_dump(exclude={"kind"}))


class AbideData(BaseModel):
    """Image-quality metrics of real scans from 17 real hospitals; see `vae.data.abide.AbideSpec`."""

    model_config = STRICT
    kind: Literal["abide"] = "abide"
    sites: Annotated[tuple[Name, ...], Field(min_length=1)] | Literal["all"] = "all"
    held_out: Share = 0.25
    reference: Literal["site", "public-ds030"] = "site"
    reference_share: Share = 0.15
    rule: Literal["majority", "any"] = "majority"
    standardise: Literal["public-ds030", "none"] = "public-ds030"
    squash: Literal["asinh", "clip"] = "asinh"
    limit: Positive = 6.0

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites."""
        from vae.data.abide import SITES

        return SITES if self.sites == "all" else tuple(sorted(self.sites))

    def to_spec(self) -> AbideSpec:
        """Return the specification for `vae.data.abide`.

        Raises:
            DataError: a site is unknown or given twice.
        """
        from vae.data.abide import AbideSpec

        fields = self.model_dump(exclude={"kind"})
        return AbideSpec(**{**fields, "sites": None if self.sites == "all" else self.sites})


class PreparationData(BaseModel):
    """How every scan is brought to one grid and range; see `vae.data.prepare.Preparation`."""

    model_config = STRICT
    shape: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    slab: bool = False
    window: Pair | None = None
    percentiles: Pair = (0.5, 99.5)

    def to_spec(self) -> Preparation:
        """Return the preparation for `vae.data.prepare`.

        Raises:
            ValueError: fields contradict each other.
        """
        from vae.data.prepare import Preparation

        return Preparation(**self.model_dump())


class NiftiSite(BaseModel):
    """Where one hospital's scans lie; see `vae.data.nifti.NiftiSource`."""

    model_config = STRICT
    root: Location
    suffixes: Annotated[tuple[Text, ...], Field(min_length=1)] = ("T1w",)
    table: Text | None = None
    patient_column: Text = "participant_id"
    covariates: tuple[Text, ...] = ()
    covariate_scale: dict[Text, Pair] = {}
    labels: tuple[Text, ...] = ()
    preparation: PreparationData
    quarantine_threshold: Fraction = 0.05

    def to_spec(self) -> NiftiSource:
        """Return the source for `vae.data.nifti`.

        Raises:
            ValueError: fields contradict each other.
        """
        from vae.data.nifti import NiftiSource

        return NiftiSource(**{**_fields(self), "preparation": self.preparation.to_spec()})


class NiftiData(BaseModel):
    """Hospitals' own BIDS folders, or tables of NIfTI paths."""

    model_config = STRICT
    kind: Literal["nifti"] = "nifti"
    held_out: Share = 0.3
    sites: Annotated[dict[Name, NiftiSite], Field(min_length=1)]

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites, sorted."""
        return tuple(sorted(self.sites))

    def to_specs(self) -> dict[str, NiftiSource]:
        """Return the source of each site for `vae.data.nifti`.

        Raises:
            ValueError: fields contradict each other.
        """
        return {name: self.sites[name].to_spec() for name in self.site_names}


class DicomSite(BaseModel):
    """Where one hospital's DICOM series lie; see `vae.data.dicom.DicomSource`."""

    model_config = STRICT
    root: Location
    table: Text | None = None
    patient_column: Text = "PatientID"
    covariates: tuple[Text, ...] = ()
    covariate_scale: dict[Text, Pair] = {}
    labels: tuple[Text, ...] = ()
    preparation: PreparationData
    quarantine_threshold: Fraction = 0.05

    def to_spec(self) -> DicomSource:
        """Return the source for `vae.data.dicom`.

        Raises:
            ValueError: fields contradict each other.
        """
        from vae.data.dicom import DicomSource

        return DicomSource(**{**_fields(self), "preparation": self.preparation.to_spec()})


class DicomData(BaseModel):
    """Hospitals' own folders of DICOM series."""

    model_config = STRICT
    kind: Literal["dicom"] = "dicom"
    held_out: Share = 0.3
    sites: Annotated[dict[Name, DicomSite], Field(min_length=1)]

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites, sorted."""
        return tuple(sorted(self.sites))

    def to_specs(self) -> dict[str, DicomSource]:
        """Return the source of each site for `vae.data.dicom`.

        Raises:
            ValueError: fields contradict each other.
        """
        return {name: self.sites[name].to_spec() for name in self.site_names}


class TableSite(BaseModel):
    """Where one hospital's table lies and what its columns mean; see `vae.data.tabular.TableSource`."""

    model_config = STRICT
    path: Location
    patient_column: Text = "participant_id"
    features: Annotated[tuple[Text, ...], Field(min_length=1)]
    covariates: tuple[Text, ...] = ()
    labels: tuple[Text, ...] = ()
    constants: dict[Text, Pair] = {}
    standardise: Literal["constants", "none"] = "constants"
    quarantine_threshold: Fraction = 0.05

    def to_spec(self) -> TableSource:
        """Return the source for `vae.data.tabular`.

        Raises:
            ValueError: fields contradict each other.
        """
        from vae.data.tabular import TableSource

        return TableSource(**_fields(self))


class TableData(BaseModel):
    """Hospitals' own tables with a patient column."""

    model_config = STRICT
    kind: Literal["table"] = "table"
    held_out: Share = 0.3
    sites: Annotated[dict[Name, TableSite], Field(min_length=1)]

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites, sorted."""
        return tuple(sorted(self.sites))

    def to_specs(self) -> dict[str, TableSource]:
        """Return the source of each site for `vae.data.tabular`.

        Raises:
            ValueError: fields contradict each other.
        """
        return {name: self.sites[name].to_spec() for name in self.site_names}


def _fields(site: BaseModel) -> dict[str, Any]:
    """Return a section's fields for the data class that has the same ones."""
    return {name: getattr(site, name) for name in type(site).model_fields}


OwnData = NiftiData | DicomData | TableData
Data = Annotated[ToyData | PhantomData | AbideData | OwnData, Field(discriminator="kind")]
