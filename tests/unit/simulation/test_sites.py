"""Virtual hospitals: who is trained on and who is judged, whose cache is whose, and what was spent."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from pydantic import ValidationError

from deploy.errors import EngineError
from deploy.simulation import sites as module
from deploy.simulation.sites import (
    POOLED,
    SimulatedSpending,
    VirtualSites,
    hold_out,
    open_site,
    pool,
    prepare,
    spent_by_round,
)
from deploy.sources import ToyData
from privacy.accounting import Release
from privacy.plan import PrivacyPlan
from privacy.records import Work
from tests.support.apps import end_process
from tests.support.experiments import experiment
from tests.support.hostile_files import scan, write_nifti
from vae.data.cohort import Cohort
from vae.data.readiness import check
from vae.data.toy import site_names as toy_names
from vae.errors import DataError, DataNotReadyError

RELEASE = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=3)
PLAN = PrivacyPlan(
    sampling_probability=0.1, noise_multiplier=1.0, steps=3, max_grad_norm=1.0, divisor=1.0, delta=1e-3
)


def _cohort(labels=None, *, patients=20, visits=2):
    keys = [f"p{index // visits:02d}" for index in range(patients * visits)]
    values = np.arange(len(keys), dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    given = {} if labels is None else {"anomaly": np.asarray(labels)}
    return Cohort.from_records(name="north", patients=keys, values=values, labels=given)


def _labels(**anomalous):
    labels = np.zeros(40, np.float32)
    for record in anomalous.get("records", ()):
        labels[record] = anomalous.get("value", 1.0)
    return labels


def test_nobody_is_trained_on_and_judged():
    for labels in (None, _labels(records=[0, 5, 6])):
        data = hold_out(_cohort(labels), 0.3)
        assert not set(data.train.patients) & set(data.test.patients)
        assert set(data.train.patients) | set(data.test.patients) == set(_cohort().patients)


def test_without_a_label_nobody_counts_as_anomalous():
    data = hold_out(_cohort(), 0.3)
    assert (data.test.labels["anomaly"] == 0).all()
    assert data.test.num_patients < data.train.num_patients


def test_a_patient_with_one_anomalous_record_is_never_trained_on_and_always_judged():
    data = hold_out(_cohort(_labels(records=[0, 6, 39])), 0.3)  # one of two visits of p00, p03 and p19
    assert {"p00", "p03", "p19"} <= set(data.test.patients)
    assert (data.train.labels["anomaly"] == 0).all()
    assert data.test.labels["anomaly"].sum() == 3
    assert data.test.num_records == 2 * data.test.num_patients, "with all their visits"


def test_a_record_without_a_value_is_neither_trained_on_nor_judged():
    data = hold_out(_cohort(_labels(records=[0, 1, 2], value=np.nan)), 0.3)
    patients = set(data.train.patients) | set(data.test.patients)
    assert "p00" not in patients
    assert data.train.num_records + data.test.num_records == 37
    for cohort in (data.train, data.test):
        assert np.isin(cohort.labels["anomaly"], (0, 1)).all()


@pytest.mark.parametrize(
    "labels",
    [_labels(records=[3], value=2.0), _labels(records=[3], value=0.5), np.array(["no", "yes"] * 20)],
    ids=["two", "half", "text"],
)
def test_another_label_than_0_or_1_is_refused_by_name(labels):
    with pytest.raises(DataError, match="north: column `anomaly` must hold 0"):
        hold_out(_cohort(labels), 0.3)


def test_a_hospital_of_anomalies_alone_is_refused():
    with pytest.raises(DataError, match="north: no patient is normal"):
        hold_out(_cohort(np.ones(40, np.float32)), 0.3)


def test_too_few_normal_patients_are_refused():
    labels = np.ones(40, np.float32)
    labels[:2] = 0
    with pytest.raises(DataError, match="1 patients are too few"):
        hold_out(_cohort(labels), 0.3)


def test_the_split_stays_when_patients_are_added():
    few, many = hold_out(_cohort(patients=12), 0.3), hold_out(_cohort(patients=20), 0.3)
    assert set(few.train.patients) <= set(many.train.patients)


def test_all_hospitals_together_keep_equal_patient_keys_apart():
    data = hold_out(_cohort(), 0.3)
    renamed = {name: module.replace(getattr(data, name), name="south") for name in ("train", "test")}
    both = pool({"north": data, "south": module.replace(data, **renamed)})
    assert both.train.num_patients == 2 * data.train.num_patients
    assert both.reference is None


def _table(path, *, rows=12, broken=0):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["participant_id", "a", "b"])
        for row in range(rows):
            writer.writerow([f"p{row}", "oops" if row < broken else row * 0.1, 1 - row * 0.1])
    return path


def _own_tables(tmp_path, **changes):
    from tests.support import experiments

    base = {name: value for name, value in experiments.BASE.items() if name != "data"}
    sites = {
        name: {"path": str(_table(tmp_path / f"{name}.csv")), "features": ["a", "b"], "standardise": "none"}
        for name in ("north", "south")
    }
    for name, fields in changes.items():
        sites[name] |= fields
    made = {**base, "data": {"kind": "table", "sites": sites}}
    return module.Experiment.model_validate_json(json.dumps(made))


def test_every_hospital_has_a_cache_of_its_own_where_the_readiness_check_looks(tmp_path):
    made = _own_tables(tmp_path)
    for name in ("north", "south"):
        _table(tmp_path / f"{name}.csv", rows=40, broken=1)
        open_site(made, name, tmp_path / "cache")
    for name, source in made.data.to_specs().items():
        (line,) = (tmp_path / "cache" / name / "quarantine.tsv").read_text().splitlines()
        assert line.endswith("line 2")
        readiness = check(source, name=name, cache=tmp_path / "cache" / name)
        assert readiness.quarantine_path == tmp_path / "cache" / name / "quarantine.tsv"


def test_too_many_bad_rows_stop_the_hospital(tmp_path):
    made = _own_tables(tmp_path)
    _table(tmp_path / "south.csv", rows=10, broken=2)
    with pytest.raises(DataNotReadyError, match=r"south: 2 of 10 planned records cannot be used"):
        prepare(made, tmp_path / "cache", workers=1)


def test_records_of_another_shape_are_refused_by_the_name_of_the_hospital(tmp_path):
    made = _own_tables(tmp_path, south={"features": ["a"]})
    with pytest.raises(DataError, match=r"south: its records have shape \(1,\), those of north \(2,\)"):
        prepare(made, tmp_path / "cache", workers=1)


def test_other_covariates_are_refused_by_the_name_of_the_hospital(tmp_path):
    made = _own_tables(tmp_path, south={"features": ["a", "b"], "covariates": ["b"]})
    with pytest.raises(DataError, match=r"south: its covariates are \('b',\), those of north \(\)"):
        prepare(made, tmp_path / "cache", workers=1)


def _scans(root, *, patients=4):
    for patient in range(patients):
        write_nifti(root / f"sub-{patient}" / "anat" / f"sub-{patient}_T1w.nii.gz", scan(patient))
    return str(root)


def _nifti(tmp_path):
    from tests.support import experiments

    site = {"preparation": {"shape": [8, 8, 8]}}
    sites = {name: {"root": _scans(tmp_path / name), **site} for name in ("north", "south")}
    base = {name: value for name, value in experiments.BASE.items() if name != "data"}
    made = {**base, "data": {"kind": "nifti", "held_out": 0.5, "sites": sites}}
    return module.Experiment.model_validate_json(json.dumps(made))


def test_scans_are_prepared_by_processes_and_found_by_this_one(tmp_path):
    told = []
    data = prepare(_nifti(tmp_path), tmp_path / "cache", workers=2, progress=told.append)
    assert told == ["north", "south"]
    assert {name: one.train.record_shape for name, one in data.items()} == dict.fromkeys(
        ("north", "south"), (1, 8, 8, 8)
    )
    prepared = [path for name in ("north", "south") for path in (tmp_path / "cache" / name).glob("*/*.npy")]
    assert len(prepared) == 8 + 2  # each scan, and each hospital's records together
    assert (tmp_path / "cache" / "north").stat().st_mode & 0o077 == 0, "nobody else may look"


def test_bad_scans_found_by_a_process_are_told_by_this_one(tmp_path):
    made = _nifti(tmp_path)
    for path in (tmp_path / "south").rglob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataNotReadyError, match="south: 4 of 4 planned records cannot be used"):
        prepare(made, tmp_path / "cache", workers=2)


def test_a_process_that_is_killed_while_it_prepares_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_prepare_one", end_process)
    with pytest.raises(EngineError, match=r"was killed|has ended"):
        prepare(_nifti(tmp_path), tmp_path / "cache", workers=2)


@pytest.mark.parametrize(
    "name", ["../north", "north/..", "..", ".hidden", "_pooled", "a b", "", "a\n", "<b>"]
)
def test_a_name_that_could_lead_elsewhere_is_no_name_of_a_hospital(name, tmp_path):
    site = {"path": str(tmp_path / "x.csv"), "features": ["a"], "standardise": "none"}
    with pytest.raises(ValidationError):
        module.Experiment.model_validate_json(json.dumps({"data": {"kind": "table", "sites": {name: site}}}))


def test_a_hospital_may_be_called_pooled(tmp_path):
    made = _own_tables(tmp_path)
    fields = made.model_dump(mode="json")
    fields["data"]["sites"]["pooled"] = fields["data"]["sites"]["north"]
    made = module.Experiment.model_validate_json(json.dumps(fields))
    assert "pooled" in made.site_names
    assert POOLED not in made.site_names


def _work(round_):
    return Work(run="run", round=round_, base="ab" * 32)


def test_what_was_spent_survives_and_a_repeated_round_is_one_cost(tmp_path):
    path = tmp_path / "north" / "spent-run.jsonl"
    first = SimulatedSpending(path)
    for round_ in (1, 1, 2):
        first.reserve(_work(round_), PLAN, model="")
        first.commit(_work(round_), 3, "")
    again = SimulatedSpending(path)
    assert sum(release.steps for release in again.history("run")) == 6
    again.reserve(_work(2), PLAN, model="")
    assert sum(release.steps for release in again.history("run")) == 6
    assert spent_by_round(tmp_path, "north", "run") == [(1, RELEASE), (2, RELEASE)]


@pytest.mark.parametrize(
    "torn", ['{"key": "run/2/bb", "rel', '{"key": "run/2/bb", "release": {"steps": 3}', "{"]
)
def test_a_line_torn_by_a_kill_takes_no_other_with_it(torn, tmp_path):
    path = tmp_path / "north" / "spent-run.jsonl"
    SimulatedSpending(path).reserve(_work(1), PLAN, model="")
    with path.open("a") as file:
        file.write(torn)
    resumed = SimulatedSpending(path)
    assert sum(release.steps for release in resumed.history("run")) == 3
    resumed.reserve(_work(2), PLAN, model="")
    resumed.reserve(_work(3), PLAN, model="")
    assert [round_ for round_, _ in spent_by_round(tmp_path, "north", "run")] == [1, 2, 3]
    assert sum(release.steps for release in SimulatedSpending(path).history("run")) == 9


def test_nothing_was_spent_where_there_is_no_record(tmp_path):
    assert spent_by_round(tmp_path, "north", "run") == []


def _virtual(tmp_path, **sections):
    made = experiment(**sections)
    return VirtualSites(
        experiment=made.model_dump_json(),
        sites=(*made.site_names, POOLED),
        folder=tmp_path / "sites",
        cache=tmp_path / "cache",
    )


def _context(node_config):
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})


def test_a_site_is_made_once_a_process_and_let_go_at_the_end(tmp_path):
    sites = _virtual(tmp_path)
    first = sites(_context({"site": "site-2"}))
    assert first.name == "site-2"
    assert sites(_context({"site": "site-2"})) is first
    assert sites(_context({"partition-id": 1})) is first, "Ray knows a node by its number"
    sites.close()
    assert sites(_context({"site": "site-2"})) is not first
    sites.close()
    assert not module._OPEN


def test_finding_a_site_does_not_look_at_the_names_of_all(tmp_path):
    """Of 10,000 sites each message would: a round would cost their square."""
    few, many = (_virtual(tmp_path, data={"sites": count}) for count in (2, 3))
    assert hash(few) == hash(dataclasses.replace(few, sites=many.sites))
    assert few != dataclasses.replace(few, sites=many.sites)
    data = ToyData(sites=5000)
    assert data.site_names is ToyData(sites=5000).site_names, "made once, not for each site"
    assert toy_names(data.to_spec()) is toy_names(data.to_spec())


def test_another_experiment_in_the_same_folder_has_sites_of_its_own(tmp_path):
    one, other = _virtual(tmp_path, seed=1), _virtual(tmp_path, seed=2)
    assert one(_context({"site": "site-1"})) is not other(_context({"site": "site-1"}))
    one.close()
    assert {key[0] for key in module._OPEN} == {other}
    other.close()


def test_the_pooled_site_has_everybody(tmp_path):
    sites = _virtual(tmp_path)
    each = [sites(_context({"site": name})).data().train.num_patients for name in sites.sites[:-1]]
    assert sites(_context({"site": POOLED})).data().train.num_patients == sum(each) == 36
    sites.close()
