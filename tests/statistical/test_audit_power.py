"""The audit is audited: it refutes what is broken, in every seed, and leaves alone what is right.

Every run here is the product's own training loop (`privacy.training.train_private`); what is broken is put in through
its own seams: an engine, a plan other than the claim, or another function of noise.

By its proofs a true claim is refuted in at most 5 % of runs (`confidence`), so that of 12 such runs all may stand with
probability 0.54 even if that were the rate; `tests/unit/privacy/test_bounds.py` measures the rate itself over thousands
of simulated runs. Here it matters that the bound is a good part of what is true, and that nothing broken escapes.
"""

from __future__ import annotations

import pytest

from privacy.accounting import Release
from privacy.canaries import GradientCanaries
from tests.support.broken import (
    BROKEN,
    CLAIM,
    EVERYBODY,
    RecordByRecord,
    audited,
    noised_by,
    repeated_noise,
)

SEEDS = (1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "claimed",
    [
        CLAIM,
        EVERYBODY,
        Release(sampling_probability=0.5, noise_multiplier=0.7, steps=3),
        Release(sampling_probability=0.05, noise_multiplier=0.6, steps=60),
    ],
    ids=["q .25", "q 1", "few steps", "little noise"],
)
def test_a_true_claim_stands(claimed: Release, seed: int):
    found = audited(claimed, seed)
    assert not found.violated
    assert max(found.lower_bound, found.lower_bound_fdp) <= found.epsilon_pld <= found.epsilon_rdp


@pytest.mark.parametrize("seed", SEEDS)
def test_what_it_finds_in_a_true_claim_is_no_small_part_of_it(seed: int):
    found = audited(EVERYBODY, seed)
    assert found.lower_bound_fdp > 0.2 * found.epsilon_pld
    assert found.auc > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_implementation_is_refuted_in_every_seed(broken: str, seed: int):
    found = BROKEN[broken](seed)
    assert found.violated, f"{broken}: {found.lower_bound_fdp:.2f} of {found.epsilon_pld:.2f}"
    assert max(found.lower_bound, found.lower_bound_fdp) > found.epsilon_pld


@pytest.mark.parametrize("records", [1, 4])
def test_a_clip_of_each_record_is_seen_by_canaries_of_several_records_alone(records: int):
    canaries = GradientCanaries(count=400, records=records)
    found = audited(EVERYBODY, 1, engine=RecordByRecord(), canaries=canaries)
    assert found.violated == (records > 1)


def test_noise_that_repeats_is_not_seen_and_the_report_says_so():
    with noised_by(repeated_noise):
        found = audited(CLAIM, 1)
    assert not found.violated
    assert any("repeat" in blind for blind in found.to_dict()["cannot_see"])
