"""From what was trained to the report: nothing in it that did not happen, and nothing left out that was spent."""

import dataclasses
import json

import pytest

from deploy.config import Experiment
from deploy.simulation.assemble import anomaly_settings, assemble, data_note, not_covered, subject
from deploy.simulation.run import forget, train
from privacy.accounting import Release, epsilons
from server.report.document import CENTRALISED, FEDERATED, FEDERATED_DP, MEAN, SITE_MEAN, alone
from server.report.export import to_document
from server.report.tables import summary_text
from tests.support.experiments import experiment, run, setting
from vae.weights import hash_weights

ALL = ["mean", "local", "federated", "federated-dp", "centralised"]


def _report(made, out):
    where = setting(made, out)
    trained = train(where)
    return trained, assemble(where, trained, wall_s=2.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _report(experiment(arms=ALL), tmp_path_factory.mktemp("whole"))


def test_the_report_is_about_the_private_arm_and_shows_all(whole):
    trained, report = whole
    assert subject(trained) == FEDERATED_DP
    names = {alone(site) for site in ("site-1", "site-2", "site-3", "own patients")}
    assert set(report.arms) == {MEAN, SITE_MEAN, FEDERATED, FEDERATED_DP, CENTRALISED, *names}
    assert (report.rounds_completed, report.rounds_planned) == (2, 2)
    assert report.weights_sha256 == hash_weights(trained.federated[FEDERATED_DP].state.weights)
    assert report.model.parameters == sum(w.size for w in trained.arms[0].weights["site-1"].values())
    assert trained.stopped is None


def test_facts_of_the_run(whole):
    _, report = whole
    assert (report.name, report.seed, report.engine, report.simulated) == ("test", 3, "local", True)
    assert report.synthetic
    assert report.timings.wall_s == 2.0
    assert report.timings.train_cpu_s > 0
    assert {row.status for row in report.participation} == {"admitted"}
    assert len(report.participation) == 6
    assert [use.round for use in report.latents] == [1, 2]
    assert {(row.site, row.round) for row in report.curves} == {
        (site, round_) for site in ("site-1", "site-2", "site-3") for round_ in (1, 2)
    }
    assert Experiment.model_validate_json(json.dumps(_yaml(report.config))) == experiment(arms=ALL)


def _yaml(text):
    import yaml

    return yaml.safe_load(text)


def test_epsilon_is_that_of_the_steps_taken_and_grows_by_round(whole):
    _, report = whole
    spent = epsilons([Release(sampling_probability=0.4, noise_multiplier=1.0, steps=4)], 1e-3)
    for row in report.privacy.per_site:
        assert (row.epsilon_rdp, row.epsilon_pld, row.steps) == (spent.rdp, spent.pld, 4)
        assert row.claim == "seeded"
    assert (report.privacy.unit, report.privacy.delta) == ("patient", 1e-3)
    first, last = (
        next(p for p in report.privacy.curve if (p.site, p.round) == ("site-1", round_)) for round_ in (1, 2)
    )
    assert first.epsilon_pld < last.epsilon_pld
    assert last.epsilon_rdp == spent.rdp
    assert report.privacy.plan.steps_per_round == 2
    assert report.privacy.plan.divisor == 5.0


def test_plans_that_differ_between_sites_are_not_shown_as_one(tmp_path):
    _, report = _report(experiment(privacy={"site_divisors": {"site-2": 7.0}}), tmp_path)
    assert report.privacy.plan is None


def test_what_left_a_site_is_spent_though_its_update_was_refused(tmp_path):
    faults = {
        "site-1": {"update": "nan", "rounds": [2]},
        "site-2": {"update": "nan"},
        "site-3": {"drop": True, "rounds": [1]},
    }
    trained, report = _report(experiment(faults=faults, federation={"quorum": 1}), tmp_path)
    assert {row.site: row.steps for row in report.privacy.per_site} == {"site-1": 4, "site-2": 4, "site-3": 2}
    assert "site-2" not in trained.federated[FEDERATED_DP].state.claims, "no update of it was ever admitted"
    assert [(p.site, p.round) for p in report.privacy.curve] == [
        ("site-1", 1), ("site-1", 2), ("site-2", 1), ("site-2", 2), ("site-3", 2),
    ]  # fmt: skip


def test_losses_of_contributions_are_named_by_round_site_and_reason(tmp_path):
    faults = {
        "site-1": {"update": "inf", "rounds": [1]},
        "site-2": {"crash": True, "rounds": [1]},
        "site-3": {"drop": True, "rounds": [2]},
    }
    made = experiment(arms=["federated"], faults=faults, federation={"quorum": 1})
    _, report = _report(made, tmp_path)
    assert {(row.round, row.site): (row.status, row.detail) for row in report.participation} == {
        (1, "site-1"): ("rejected", "not-finite"),
        (1, "site-2"): ("failed", "internal-error"),
        (1, "site-3"): ("admitted", ""),
        (2, "site-1"): ("admitted", ""),
        (2, "site-2"): ("admitted", ""),
        (2, "site-3"): ("silent", ""),
    }
    assert {(row.round, row.site, row.reason) for row in report.rejected} == {
        (1, "site-1", "not-finite"),
        (1, "site-2", "site-failed:internal-error"),
        (2, "site-3", "no-reply"),
    }
    document = to_document(report)
    assert document["lost"] == {
        "admitted": 3,
        "failed": 1,
        "rejected": 1,
        "late": 0,
        "silent": 1,
        "unused": 0,
    }
    assert document["faults"] == faults
    assert report.privacy is None


def test_a_run_without_quorum_is_reported_up_to_its_last_round(tmp_path):
    faults = {"site-1": {"drop": True, "rounds": [3]}, "site-2": {"update": "nan", "rounds": [3]}}
    made = experiment(
        arms=["mean", "local", "federated", "federated-dp"],
        faults=faults,
        federation={"rounds": 4, "quorum": 2},
    )
    trained, report = _report(made, tmp_path)
    assert trained.stopped.round == 3
    assert (report.rounds_completed, report.rounds_planned) == (2, 4)
    assert FEDERATED in report.arms
    assert FEDERATED_DP not in report.arms, "the run ended before"
    assert [(row.site, row.status) for row in report.participation if row.round == 3] == [
        ("site-1", "silent"),
        ("site-2", "rejected"),
        ("site-3", "unused"),
    ]
    assert {(row.site, row.reason) for row in report.rejected} == {
        ("site-1", "no-reply"),
        ("site-2", "not-finite"),
        ("site-3", "round-lost"),
    }
    assert "stopped after 2 of 4 planned rounds" in summary_text(report)
    assert report.weights_sha256 == hash_weights(trained.arms[-1].weights["site-3"])


def test_a_run_without_quorum_in_its_first_round_has_no_model(tmp_path):
    faults = {site: {"drop": True} for site in ("site-1", "site-2")}
    trained, report = _report(experiment(faults=faults, arms=["mean", "federated-dp"]), tmp_path)
    assert trained.stopped.round == 1
    assert report.rounds_completed == 0
    assert report.weights_sha256 is None
    assert set(report.arms) == {MEAN, SITE_MEAN}
    assert report.latents == ()
    assert {row.site: row.steps for row in report.privacy.per_site} == {"site-3": 2}, (
        "it was spent all the same"
    )


def test_without_a_federation_no_rounds_were_planned(tmp_path):
    trained, report = _report(experiment(arms=["mean", "centralised"]), tmp_path)
    assert subject(trained) is None
    assert (report.rounds_planned, report.rounds_completed, report.weights_sha256) == (0, 0, None)
    assert set(report.arms) == {MEAN, SITE_MEAN, CENTRALISED}
    assert report.participation == ()
    assert report.timings.train_cpu_s > 0, "of all patients in one place"
    assert "stopped" not in summary_text(report)
    assert "No federated model was judged" in summary_text(report)


def test_a_run_without_the_mean_says_that_nothing_shows_its_use(tmp_path):
    _, report = _report(experiment(arms=["federated"]), tmp_path)
    assert "This run left out predicting the mean" in summary_text(report)
    assert "has not been compared" not in summary_text(report)


def test_a_resumed_run_reports_the_rounds_before(tmp_path):
    made = experiment(arms=["federated-dp"], federation={"rounds": 3})
    _, first = _report(made, tmp_path)
    again_trained, again = _report(made, tmp_path)
    assert again_trained.rounds_now[FEDERATED_DP] == frozenset()
    same = dataclasses.replace(again, created=first.created, timings=first.timings)
    assert same == first


def test_the_latents_of_one_arm_are_not_shown_as_those_of_another(tmp_path):
    run(experiment(arms=["federated"]), tmp_path)
    private = run(experiment(arms=["federated-dp"]), tmp_path).latents[FEDERATED_DP]
    plain = run(experiment(arms=["federated"]), tmp_path).latents[FEDERATED]
    assert [use.round for use in plain] == [use.round for use in private] == [1, 2]
    assert plain != private


def test_a_run_that_begins_again_in_one_process_keeps_its_records(tmp_path):
    made = experiment()
    for _ in range(2):
        _, report = _report(made, tmp_path)
        assert {row.steps for row in report.privacy.per_site} == {4}
        (tmp_path / "config.resolved.yaml").touch()
        forget(tmp_path)


def _with_data(**fields):
    return Experiment.model_validate_json(json.dumps({"data": fields}))


def test_the_note_on_the_data_says_what_they_are():
    template = data_note(_with_data(kind="phantom"))
    assert "MNI ICBM 2009a" in template
    assert "Synthetic" in template
    founders = data_note(_with_data(kind="phantom", founders="/somewhere"))
    assert "label maps" in founders
    assert "MNI" not in founders
    assert "/somewhere" not in founders
    assert "17 of the 17 hospitals" in data_note(_with_data(kind="abide"))
    few = data_note(_with_data(kind="abide", sites=["NYU", "UM"], standardise="none"))
    assert "2 of the 17 hospitals" in few
    assert "ds030" not in few
    assert "nothing about medicine" in data_note(_with_data(kind="toy"))
    table = {"path": "/x.csv", "features": ["a"], "standardise": "none"}
    assert data_note(_with_data(kind="table", sites={"a": table})) == "The hospitals' own tables."
    scans = {"root": "/x", "preparation": {"shape": [8, 8]}}
    assert data_note(_with_data(kind="nifti", sites={"a": scans})) == "The hospitals' own scans."


def test_what_privacy_does_not_cover_fits_the_run():
    alone_ = not_covered(experiment(arms=["federated-dp"]))
    assert not any("other arms" in sentence for sentence in alone_)
    assert any(
        "other arms" in sentence for sentence in not_covered(experiment(arms=["mean", "federated-dp"]))
    )
    shared = not_covered(experiment(federation={"sharing": "decoder"}))
    assert any("not shared stay at their site" in sentence for sentence in shared)
    assert not any("not shared" in sentence for sentence in alone_)


@pytest.mark.parametrize(
    ("channels", "direction"),
    [(["pet"], "auto"), (["t1w", "pet"], "auto"), (["t1w"], "both"), (["t2w"], "both")],
)
def test_without_pet_an_anomaly_may_be_bright_or_dark(channels, direction):
    assert anomaly_settings(_with_data(kind="phantom", channels=channels)).direction == direction
    assert anomaly_settings(_with_data(kind="toy")).direction == "auto"


def test_the_primary_metric_depends_on_what_there_is_never_on_its_value():
    from deploy.simulation.assemble import primary_metric
    from server.report.document import ResultRow

    def rows(*metrics):
        return [ResultRow(arm="a", task="anomaly", metric=metric, value=0.1) for metric in metrics]

    assert primary_metric(rows("auroc_residual", "auroc_zmap", "auroc_zmap_30")) == (
        "anomaly",
        "auroc_zmap_30",
    )
    assert primary_metric(rows("auroc_residual", "auroc_zmap")) == ("anomaly", "auroc_zmap")
    assert primary_metric(rows("dice_30")) is None
