"""The strict readers that plans, releases, claims and journals share."""

from __future__ import annotations

import math

import pytest

from privacy.errors import (
    AccountingError,
    IncompatibleModelError,
    PlanError,
    PrivacyError,
    RefusalCode,
    RefusedError,
)
from privacy.fields import choice_problem, integer_problem, number_problem, parse_json, require_fields


def test_exactly_the_named_keys_pass():
    document = {"a": 1, "b": None}
    assert require_fields(document, subject="thing", names=("a", "b")) is document


def test_missing_and_unknown_keys_are_reported_together_with_the_nearest_name():
    with pytest.raises(PlanError) as caught:
        require_fields({"aplha": 1, 3: 2}, subject="thing", names=("alpha", "beta"))
    assert caught.value.problems == (
        "alpha is missing",
        "beta is missing",
        "'3' is unknown",
        "'aplha' is unknown (did you mean 'alpha'?)",
    )
    assert str(caught.value).startswith("thing: alpha is missing; ")


@pytest.mark.parametrize("payload", [None, 1, "ab", ["a"], {"a"}, b"a"])
def test_what_is_no_mapping_is_named_by_its_type(payload: object):
    with pytest.raises(
        PlanError, match=f"thing: must be a mapping with the keys a, got {type(payload).__name__}"
    ):
        require_fields(payload, subject="thing", names=("a",))


@pytest.mark.parametrize("value", [1e-9, 0.5, 1, 1.0])
def test_numbers_in_range_pass(value: float):
    assert number_problem("x", value, low=0, high=1, rule="in (0, 1]") == []


@pytest.mark.parametrize(
    "value", [0, -1, 1.0000001, math.nan, math.inf, -math.inf, True, "1", None, 1j, [1], 10**400]
)
def test_numbers_out_of_range_and_other_types_do_not(value: object):
    (problem,) = number_problem("x", value, low=0, high=1, rule="in (0, 1]")
    assert problem.startswith("x must be in (0, 1], got ")
    assert len(problem) < 100  # a hostile value does not fill the log


@pytest.mark.parametrize(
    ("value", "passes"), [(0, False), (1, True), (5, True), (6, False), (True, False), (2.0, False)]
)
def test_integers_are_in_range_and_no_booleans(value: object, passes: bool):
    problems = integer_problem("x", value, low=1, high=5)
    assert (problems == []) is passes
    assert passes or problems == [f"x must be an integer from 1 to 5, got {value!r}"]


def test_integers_may_be_open_above():
    assert integer_problem("x", 10**30, low=1) == []
    assert integer_problem("x", 0, low=1) == ["x must be an integer >= 1, got 0"]


@pytest.mark.parametrize(
    ("value", "passes"), [("a", True), ("b", True), ("c", False), (None, False), (["a"], False)]
)
def test_choices_are_exact(value: object, passes: bool):
    assert (choice_problem("x", value, choices=("a", "b")) == []) is passes


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "x"]}', b'{"a": [1, 2.5, null, true, "x"]}'])
def test_json_is_read_from_text_and_bytes(text: str | bytes):
    assert parse_json(text, subject="thing") == {"a": [1, 2.5, None, True, "x"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        "NaN",
        "[Infinity]",
        "[" * 100_000,
        b"\xff",
    ],
)
def test_other_json_is_refused(text: str | bytes):
    with pytest.raises(PlanError, match="thing: not valid JSON: "):
        parse_json(text, subject="thing")


@pytest.mark.parametrize(
    "error",
    [
        PlanError("plan", ["a"]),
        IncompatibleModelError(["a"]),
        AccountingError("a"),
        RefusedError(RefusalCode.KEY_REUSED),
    ],
)
def test_one_except_catches_every_domain_error(error: Exception):
    assert isinstance(error, PrivacyError)
    assert not isinstance(error, ValueError | RuntimeError)


def test_a_refusal_carries_a_code_that_may_be_sent():
    error = RefusedError(RefusalCode.NOT_RESERVED, "patient 17 of site-1")
    assert error.code.value == "not-reserved"
    assert str(error) == "not-reserved: patient 17 of site-1"
    assert str(RefusedError(RefusalCode.NOT_RESERVED)) == "not-reserved"
