"""The data section has the fields of the data classes, with their defaults, and builds them."""

import dataclasses

import pytest

from deploy import sources
from vae.data.abide import AbideSpec
from vae.data.dicom import DicomSource
from vae.data.nifti import NiftiSource
from vae.data.phantom import spec as phantom
from vae.data.prepare import Preparation
from vae.data.tabular import TableSource
from vae.data.toy import ToySpec, site_names

PAIRS = [
    (sources.ToyData, ToySpec),
    (sources.PhantomData, phantom.PhantomSpec),
    (sources.AbideData, AbideSpec),
    (sources.NiftiSite, NiftiSource),
    (sources.DicomSite, DicomSource),
    (sources.TableSite, TableSource),
    (sources.PreparationData, Preparation),
]
NOT_CONFIGURED = {"limits"}  # what a file may claim is no choice of a study
OTHER_DEFAULT = {("AbideData", "sites")}  # `all` in the file, None in the class


@pytest.mark.parametrize(("section", "target"), PAIRS, ids=lambda pair: pair.__name__)
def test_fields_and_defaults_are_those_of_the_data_class(section, target):
    fields = {field.name: field for field in dataclasses.fields(target)}
    assert set(section.model_fields) - {"kind"} == set(fields) - NOT_CONFIGURED
    for name, info in section.model_fields.items():
        if name == "kind" or (section.__name__, name) in OTHER_DEFAULT:
            continue
        given = fields[name]
        required = given.default is dataclasses.MISSING and given.default_factory is dataclasses.MISSING
        assert info.is_required() == required, name
        if not required:
            default = given.default_factory() if given.default is dataclasses.MISSING else given.default
            assert info.default == default, name


def test_phantoms_and_toys_are_built_as_given():
    assert sources.PhantomData(sites=2, slab=1).to_spec() == phantom.PhantomSpec(sites=2, slab=1)
    assert sources.ToyData(features=5, records=(2, 2)).to_spec() == ToySpec(features=5, records=(2, 2))


def test_site_names_are_those_of_the_data():
    assert sources.PhantomData(sites=3).site_names == phantom.site_names(phantom.PhantomSpec(sites=3))
    assert sources.ToyData(sites=3).site_names == site_names(ToySpec(sites=3))
    assert sources.AbideData(sites=("YALE", "CMU")).site_names == ("CMU", "YALE")
    assert len(sources.AbideData().site_names) == 17


def test_abide_takes_all_sites_or_some():
    assert sources.AbideData().to_spec().sites is None
    assert sources.AbideData(sites=("NYU",)).to_spec().sites == ("NYU",)


def test_a_hospitals_own_data():
    preparation = sources.PreparationData(shape=(8, 8), slab=True)
    nifti = sources.NiftiData(
        sites={"b": sources.NiftiSite(root="/x", preparation=preparation, labels=("anomaly",))}
    )
    assert nifti.to_specs()["b"] == NiftiSource(
        root="/x", preparation=Preparation(shape=(8, 8), slab=True), labels=("anomaly",)
    )
    dicom = sources.DicomData(sites={"b": sources.DicomSite(root="/x", preparation=preparation)})
    assert dicom.to_specs()["b"].preparation.slab
    table = sources.TableData(
        sites={"b": sources.TableSite(path="/x.csv", features=("u", "v"), standardise="none")}
    )
    assert table.to_specs()["b"] == TableSource(path="/x.csv", features=("u", "v"), standardise="none")


def test_names_of_sites_are_sorted():
    site = sources.TableSite(path="/x.csv", features=("u",), standardise="none")
    assert sources.TableData(sites={"south": site, "north": site}).site_names == ("north", "south")
