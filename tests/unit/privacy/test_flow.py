"""Check, reserve, train, commit, claim: the parts of this package as a site uses them, round after round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from privacy.accounting import Release, epsilons
from privacy.budget import LedgerSpending, Spending
from privacy.claim import Claim
from privacy.compatible import check_model
from privacy.errors import IncompatibleModelError, RefusedError
from privacy.noise import SeededRandomness
from privacy.plan import PrivacyPlan, plan_from_dict
from privacy.records import Work
from privacy.training import NoisedOptimiser, train_private
from tests.support.private_toys import LATENT, ImageVae, make_cohort, make_module, weights_of
from tests.support.site_ledgers import POLICY, open_ledger

PLAN = PrivacyPlan(
    sampling_probability=0.2,
    steps=5,
    noise_multiplier=1.1,
    max_grad_norm=1.0,
    divisor=4.0,
    delta=1e-4,
    randomness="seeded",
)
RECORDS = (1, 2, 1, 3) * 5


def play(module: torch.nn.Module, spending: Spending, number: int, *, crash: bool = False) -> None:
    """Run one round the way a site has to: nothing before the reservation, nothing out before the commit."""
    work = Work(run="run-1", round=number, base="0" * 64)
    spending.reserve(work, PLAN, model="1" * 64)
    cohort = make_cohort((1, 8, 8), RECORDS)
    done = train_private(
        module,
        cohort,
        plan=PLAN,
        optimiser=NoisedOptimiser(learning_rate=0.01),
        randomness=SeededRandomness(3, "run-1", "site-1", number),
        kl_weight=1.0,
        latent_size=LATENT,
    )
    if crash:
        raise KeyboardInterrupt
    assert done.release == PLAN.release()
    spending.commit(work, done.steps_done, "2" * 64)


def open_spending(folder: Path, *, epsilon: float = 1e3) -> Spending:
    """Return spending from the ledger of a folder."""
    patients = make_cohort((1, 8, 8), RECORDS).patients
    return LedgerSpending(open_ledger(folder, patients, epsilon=epsilon, delta=PLAN.delta), POLICY)


def claim_of(spending: Spending) -> Claim:
    return Claim(
        site="site-1", unit=PLAN.unit, delta=PLAN.delta, kind="seeded", releases=spending.history("run-1")
    )


def test_rounds_add_up_to_one_release_of_all_their_steps(tmp_path: Path):
    journal, module = open_spending(tmp_path), make_module("image")
    check_model(module, make_cohort((1, 8, 8), (1,)).everything(), LATENT, engine=PLAN.grad_engine)
    spent = []
    for number in range(1, 5):
        play(module, journal, number)
        spent.append(claim_of(journal).epsilons().pld)
    claim = Claim.from_json(claim_of(journal).to_json())
    assert claim.releases == (Release(sampling_probability=0.2, noise_multiplier=1.1, steps=20),)
    assert claim.epsilons() == epsilons([PLAN.release()] * 4, PLAN.delta)
    assert spent == sorted(spent)
    assert len(set(spent)) == 4


def test_a_crash_is_paid_for_once_and_its_repetition_gives_the_same_weights(tmp_path: Path):
    journal, whole = open_spending(tmp_path), make_module("image")
    for number in (1, 2):
        play(whole, open_spending(tmp_path / "other"), number)
    module = make_module("image")
    play(module, journal, 1)
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        play(module, journal, 2, crash=True)
    assert [release.steps for release in open_spending(tmp_path).history("run-1")] == [10]
    module.load_state_dict(base)
    play(module, open_spending(tmp_path), 2)
    assert torch.equal(weights_of(module), weights_of(whole))
    assert [release.steps for release in open_spending(tmp_path).history("run-1")] == [10]


def test_a_refused_reservation_stops_before_any_training(tmp_path: Path):
    module = make_module("image")
    before = weights_of(module)
    with pytest.raises(RefusedError, match="budget-exhausted"):
        play(module, open_spending(tmp_path, epsilon=0.5), 1)
    assert torch.equal(weights_of(module), before)


def test_a_bad_model_is_refused():
    with pytest.raises(IncompatibleModelError):
        check_model(
            ImageVae(torch.nn.BatchNorm2d(4)),
            make_cohort((1, 8, 8), (1,)).everything(),
            LATENT,
            engine=PLAN.grad_engine,
        )


def test_the_plan_that_travelled_trains_like_the_one_that_was_sent():
    received = plan_from_dict(PLAN.to_dict())
    assert received == PLAN
    assert received.release() == PLAN.release()
