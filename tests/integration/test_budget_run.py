"""Virtual hospitals with budgets: they train until the cap, refuse by name, and remember across studies and kills."""

from __future__ import annotations

import dataclasses

import pytest

from deploy.simulation.ledgers import ledger_path
from deploy.simulation.run import Setting, train
from privacy.accounting import epsilons
from privacy.ledger import Ledger
from server.checkpoint import latest
from server.errors import BudgetSpentError
from tests.support.experiments import experiment, run, setting
from vae.weights import hash_weights

STUDY = {"federation": {"rounds": 8, "patience": 3}, "privacy": {"sampling_probability": 0.2, "divisor": 2.4}}


def _capped(cap, **sections):
    return experiment(**{**STUDY, "budget": {"epsilon": cap}, **sections})


def _ledger(made, folder, site="site-1"):
    return Ledger.open(ledger_path(made, folder / "sites", site))


def _final(trained):
    return hash_weights(trained.federated["federated-dp"].state.weights)


def test_sites_train_until_the_cap_and_refuse_by_name(tmp_path):
    made = _capped(3.0)
    trained = run(made, tmp_path)
    ended = trained.federated["federated-dp"]
    assert isinstance(trained.stopped, BudgetSpentError)
    assert trained.stopped.spent == made.site_names
    assert "privacy budget does not allow another round" in str(trained.stopped)
    assert 1 <= ended.round < 8
    for site in made.site_names:
        state = _ledger(made, tmp_path, site).state()
        assert len(state.reservations) == ended.round
        assert {code for _, code in state.refused} <= {"budget-exhausted", "run-budget-exhausted"}
        assert state.refused
        spent = state.releases("c0")
        assert state.genesis.rule.epsilon_spent(spent) <= 3.0
        more = (*spent, spent[0].__class__(**{**dataclasses.asdict(spent[0]), "steps": 2}))
        assert not state.genesis.rule.allows(more), "it could have paid for another round"
        assert epsilons(spent, 1e-3).pld <= 3.0


def test_one_site_without_budget_leaves_and_the_others_go_on(tmp_path):
    made = experiment(**STUDY, budget={"sites": {"site-2": 2.5}})
    trained = run(made, tmp_path)
    ended = trained.federated["federated-dp"]
    assert trained.stopped is None
    assert ended.rounds_applied == 8
    reasons = [status["site-2"] for status in ended.state.participation]
    assert reasons[0] == "admitted"
    assert reasons[-1] == "site-failed:budget-exhausted"
    assert {status["site-1"] for status in ended.state.participation} == {"admitted"}


def test_a_budget_that_suffices_changes_no_bit(tmp_path):
    without = experiment(**STUDY)
    assert _final(run(without, tmp_path / "a")) == _final(run(_capped(100.0), tmp_path / "b"))


def test_a_second_study_starts_from_what_the_first_one_spent(tmp_path):
    ledgers = str(tmp_path / "ledgers")
    first = _capped(3.0, budget={"epsilon": 3.5, "ledgers": ledgers}, federation={"rounds": 2, "patience": 3})
    second = _capped(3.0, budget={"epsilon": 3.5, "ledgers": ledgers}, seed=4)
    alone = _capped(3.5, seed=4)
    assert run(first, tmp_path / "first").stopped is None
    followed, by_itself = run(second, tmp_path / "second"), run(alone, tmp_path / "alone")
    rounds = [each.federated["federated-dp"].round for each in (followed, by_itself)]
    assert rounds[0] == rounds[1] - 2 > 0
    state = _ledger(second, tmp_path / "second").state()
    assert len({work.run for work in state.reservations}) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_it_pays_once_and_ends_with_the_same_model(tmp_path, workers):
    made = _capped(50.0)
    whole = _final(run(made, tmp_path / "whole", workers=workers))

    class StopError(Exception):
        pass

    class Killer:
        def __init__(self, after):
            self._left = after

        def note(self, text):
            pass

        def update(self, view):
            self._left -= 1
            if self._left == 0:
                raise StopError

        def close(self):
            pass

    base = setting(made, tmp_path / "killed", workers=workers)
    for after in (1, 2, 3):
        killed = Setting(**{**vars_of(base), "progress": Killer(after)})
        with pytest.raises(StopError):
            train(killed)
    again = train(base)
    assert _final(again) == whole
    state = _ledger(made, tmp_path / "killed").state()
    assert sorted(work.round for work in state.reservations) == list(range(1, 9))


def vars_of(base):
    return {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}


def test_the_server_keeps_heads_and_every_update_extends_them(tmp_path):
    made = _capped(100.0)
    run(made, tmp_path)
    kept = latest(tmp_path / "checkpoints" / "federated-dp").heads
    assert set(kept) == {*made.site_names, ""}
    for site in made.site_names:
        (head,) = kept[site]
        state = _ledger(made, tmp_path, site).state()
        assert state.roots[head["size"] - 1] == head["root"]
        assert head["size"] == state.size


def test_a_restored_old_ledger_signs_nothing_more(tmp_path):
    made = _capped(100.0)
    path = ledger_path(made, tmp_path / "sites", "site-1")
    old: list[bytes] = []

    class Restorer:
        """Puts the ledger of round 2 back after round 4, as a backup might."""

        def note(self, text):
            pass

        def update(self, view):
            if view.round == 2:
                old.append(path.read_bytes())
            if view.round == 4:
                path.write_bytes(old[0])

        def close(self):
            pass

    base = setting(made, tmp_path)
    trained = train(Setting(**{**vars_of(base), "progress": Restorer()}))
    statuses = [status["site-1"] for status in trained.federated["federated-dp"].state.participation]
    assert statuses[:4] == ["admitted"] * 4
    assert set(statuses[4:]) <= {"site-failed:ledger-not-ready", "site-failed:refused-by-policy"}
