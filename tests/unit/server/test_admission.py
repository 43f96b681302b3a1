"""Admission by itself: the norm, the order of the checks, and what a rejection holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flwr.app import Message

from client.contract import PROTOCOL_VERSION, FailureCode, Update, Weights, encode_update
from server.admission import (
    Admission,
    Expectation,
    RejectedError,
    Rejection,
    RejectionCode,
    update_norm,
)
from server.errors import StrategyError
from server.settings import StrategySettings
from tests.support.replies import (
    PLAN,
    RUN_ID,
    SHAPES,
    ask,
    forged,
    honest_update,
    request_for,
    small_strategy,
    some_weights,
)
from vae.weights import hash_weights

BASE = some_weights(0)
EXPECTED = Expectation.of("site-1", request_for("site-1", 1, hash_weights(BASE)), BASE)


def _check(update: Update, tmp_path, *, max_update_norm: float = 1000.0) -> Update:
    strategy = small_strategy(StrategySettings(name="fedavg"), tmp_path, sites=["site-1"])
    reply = Message(forged(update), reply_to=ask(strategy)["site-1"])
    return Admission(max_update_norm=max_update_norm).check(reply, EXPECTED)


def _with_delta(delta: Weights) -> Update:
    return honest_update("site-1", 1, BASE, delta)


def test_an_honest_update_passes_unchanged(tmp_path) -> None:
    sent = _with_delta(some_weights(1, scale=0.1))
    got = _check(sent, tmp_path)
    assert dataclasses.replace(got, delta={}) == dataclasses.replace(sent, delta={})
    for name in SHAPES:
        np.testing.assert_array_equal(got.delta[name], sent.delta[name])


def test_the_expectation_is_that_of_the_request() -> None:
    assert (EXPECTED.run_id, EXPECTED.round, EXPECTED.base_hash) == (RUN_ID, 1, hash_weights(BASE))
    assert EXPECTED.shapes == SHAPES
    assert request_for("site-1", 1, "x").plan == PLAN


def test_norm_is_over_all_parameters() -> None:
    # 3-4-12: sqrt(9 + 16 + 144) = 13
    delta = {
        "a": np.array([[3.0, 0.0]], np.float32),
        "b": np.array(-4.0, np.float32),
        "c": np.full(1, 12, np.float32),
    }
    assert update_norm(delta) == 13.0


def test_norm_does_not_overflow_where_float32_would() -> None:
    largest = np.finfo(np.float32).max
    delta = {"a": np.full(10_000, largest, np.float32)}
    assert update_norm(delta) == pytest.approx(100 * float(largest), rel=1e-12)
    with np.errstate(over="ignore"):
        assert not np.isfinite(np.linalg.norm(delta["a"]))  # the obvious implementation fails


def test_norm_does_not_lose_small_values_beside_large_ones() -> None:
    delta = {"a": np.concatenate([np.full(1, 4096, np.float32), np.full(300_000, 1, np.float32)])}
    assert update_norm(delta) == pytest.approx((4096**2 + 300_000) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 131_071, 131_072, 200_000])
def test_norm_shows_every_value_that_is_not_finite(bad: float, position: int) -> None:
    values = np.zeros(200_001, np.float32)
    values[position] = bad
    assert not np.isfinite(update_norm({"a": values}))


def test_the_bound_itself_is_admitted_and_the_next_number_is_not(tmp_path) -> None:
    delta = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    delta["decoder.bias"][0] = 7.0
    _check(_with_delta(delta), tmp_path, max_update_norm=7.0)
    delta["decoder.bias"][0] = np.nextafter(np.float32(7), np.float32(8))
    with pytest.raises(RejectedError, match="site-1: norm-too-large"):
        _check(_with_delta(delta), tmp_path, max_update_norm=7.0)


def test_cheap_checks_decide_before_dear_ones(tmp_path) -> None:
    # Everything is wrong at once; mended step by step, the next check speaks.
    delta = some_weights(1)
    delta["decoder.bias"][0] = np.nan
    update = dataclasses.replace(
        _with_delta(delta),
        version=PROTOCOL_VERSION + 1,
        site="x",
        run_id="x",
        round=9,
        base_hash="x",
        update_hash="x",
    )
    order = []
    for name, right in (
        ("version", PROTOCOL_VERSION), ("site", "site-1"), ("run_id", RUN_ID), ("round", 1),
        ("base_hash", EXPECTED.base_hash), ("delta", some_weights(1)),
    ):  # fmt: skip
        with pytest.raises(RejectedError) as refusal:
            _checked_raw(update, tmp_path)
        order.append(refusal.value.code.value)
        update = dataclasses.replace(update, **{name: right})
    with pytest.raises(RejectedError) as refusal:
        _checked_raw(update, tmp_path)
    order.append(refusal.value.code.value)
    assert order == [
        "version", "wrong-site", "wrong-run", "wrong-round", "stale-base", "not-finite", "hash-mismatch"
    ]  # fmt: skip


def _checked_raw(update: Update, tmp_path) -> Update:
    strategy = small_strategy(StrategySettings(name="fedavg"), tmp_path, sites=["site-1"])
    reply = Message(encode_update(update), reply_to=ask(strategy)["site-1"])
    return Admission(max_update_norm=1000.0).check(reply, EXPECTED)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_the_bound_is_positive_and_finite(bound: float) -> None:
    with pytest.raises(StrategyError, match=f"max_update_norm is {bound}"):
        Admission(max_update_norm=bound)


def test_a_rejection_says_its_reason_in_one_word() -> None:
    assert Rejection(round=1, site="a", code=RejectionCode.STALE_BASE).reason == "stale-base"
    failed = Rejection(round=1, site="a", code=RejectionCode.SITE_FAILED, failure=FailureCode.BUDGET)
    assert failed.reason == "site-failed:budget-exhausted"


def test_the_vocabulary_is_closed() -> None:
    assert {code.value for code in RejectionCode} == {
        "no-reply", "late", "duplicate", "site-failed", "malformed", "missing-tensor", "unexpected-tensor",
        "wrong-shape", "wrong-dtype", "version", "wrong-site", "wrong-run", "wrong-round", "stale-base", "not-finite",
        "norm-too-large", "hash-mismatch", "round-lost", "claim-mismatch", "receipt-missing", "receipt-invalid",
        "receipt-of-other-work", "ledger-rolled-back", "ledger-forked",
    }  # fmt: skip
