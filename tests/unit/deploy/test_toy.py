"""The toy table: repeatable, independent of the number of sites, and learnable."""

import dataclasses

import numpy as np
import pytest

from vae.data.toy import ToySpec, open_toy, site_names
from vae.errors import DataError

SPEC = ToySpec(sites=3, patients_per_site=40, records=(1, 3), features=8, covariates=1, seed=5)


def test_counts_follow_the_specification():
    data = open_toy(SPEC, 1)
    assert site_names(SPEC) == ("site-1", "site-2", "site-3")
    assert data.train.name == "site-2"
    assert data.train.num_patients == 40
    assert data.train.record_shape == (8,)
    assert data.train.covariate_names == ("covariate-1",)
    visits = np.diff(data.train.offsets)
    assert set(visits.tolist()) == {1, 2, 3}
    assert data.test.num_patients == 40  # half as many again, normal and anomalous
    assert not set(data.train.patients) & set(data.test.patients)


def test_labels_are_constant_within_a_patient_and_half_are_anomalous():
    test = open_toy(SPEC, 0).test
    first = test.labels["anomaly"][test.offsets[:-1]]
    assert np.array_equal(np.repeat(first, np.diff(test.offsets)), test.labels["anomaly"])
    assert first.sum() == 20
    assert open_toy(SPEC, 0).train.labels["anomaly"].sum() == 0


def test_a_site_depends_on_seed_and_index_alone():
    one = open_toy(SPEC, 1)
    more = open_toy(dataclasses.replace(SPEC, sites=900), 1)
    assert one.train.fingerprint() == more.train.fingerprint()
    assert one.train.fingerprint() != open_toy(SPEC, 2).train.fingerprint()
    assert one.train.fingerprint() != open_toy(dataclasses.replace(SPEC, seed=6), 1).train.fingerprint()


def reconstruction_errors(train, values, rank):
    mean = train.mean(0)
    _, _, basis = np.linalg.svd(train - mean, full_matrices=False)
    kept = basis[:rank]
    return np.square((values - mean) - (values - mean) @ kept.T @ kept).mean(1)


def auroc(score, label):
    order = np.argsort(np.argsort(score)) + 1
    positive = label == 1
    count = positive.sum()
    return (order[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())


def test_anomalies_are_seen_by_who_knows_how_columns_go_together_and_by_nobody_else():
    """Principal components tell anomalous records apart; the distance to the mean does not."""
    spec = ToySpec(sites=1, patients_per_site=400, features=8, seed=1)
    data = open_toy(spec, 0)
    label = data.test.labels["anomaly"]
    assert auroc(reconstruction_errors(data.train.values, data.test.values, rank=3), label) > 0.9
    assert abs(auroc(reconstruction_errors(data.train.values, data.test.values, rank=0), label) - 0.5) < 0.1


def test_every_problem_is_named():
    with pytest.raises(DataError) as caught:
        ToySpec(sites=0, patients_per_site=1, records=(3, 1), features=1, covariates=-1, seed=-1)
    for field in (
        "sites is 0",
        "patients_per_site is 1",
        "records is (3, 1)",
        "features is 1",
        "covariates",
        "seed",
    ):
        assert field in str(caught.value)


@pytest.mark.parametrize("site", [-1, 3])
def test_there_is_no_such_site(site):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        open_toy(SPEC, site)
