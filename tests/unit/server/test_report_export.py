"""`report.json` follows its schema, is strict JSON, and says why a number is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from server.report import SCHEMA, ResultRow, to_document, to_json
from tests.support.reports import image_report, table_report, unprotected_report

IMAGE = image_report(rounds=3)
VALIDATOR = Draft202012Validator(SCHEMA)


def strictly(text):
    """Parse JSON, refusing the tokens that JSON does not have."""

    def refuse(token):
        raise ValueError(f"not JSON: {token}")

    return json.loads(text, parse_constant=refuse)


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "report", [IMAGE, table_report(rounds=4), unprotected_report()], ids=lambda r: r.name
)
def test_reports_follow_the_schema(report):
    VALIDATOR.validate(strictly(to_json(report)))


@pytest.mark.parametrize(
    "key",
    [
        *("name", "seed", "engine", "rounds_completed", "sites", "model", "privacy", "results", "rejected"),
        *("faults", "timings", "weights_sha256"),
    ],
)
def test_the_schema_would_notice_a_missing_field(key):
    body = to_document(IMAGE)
    del body[key]
    assert not VALIDATOR.is_valid(body)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("privacy", "per_site", 0, "claim"), "sure"), (("weights_sha256",), "123"), (("sites",), "site-1")],
)
def test_the_schema_would_notice_a_wrong_value(path, value):
    body = json.loads(to_json(IMAGE))
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(body)


def test_the_promised_fields_hold_what_was_given():
    body = strictly(to_json(IMAGE))
    assert body["model"]["family"] == "beta-vae"
    assert body["model"]["parameters"] == 199_432
    assert body["privacy"]["unit"] == "patient"
    assert body["privacy"]["delta"] == 1e-5
    assert set(body["privacy"]["per_site"][0]) == {
        "site",
        "epsilon_rdp",
        "epsilon_pld",
        "steps",
        "claim",
        "cap",
    }
    assert set(body["results"][0]) == {"arm", "task", "metric", "value", "ci95"}
    assert body["results"][0]["ci95"] == list(IMAGE.results[0].ci95)
    assert body["rejected"][0] == {"round": 1, "site": "site-2", "reason": "not-finite"}
    assert body["faults"] == {"site-2": {"update": "nan", "rounds": [1, 2]}, "dropout": 0.05}
    assert body["timings"] == {"wall_s": 212.4, "train_cpu_s": 371.9, "overhead_s_per_round": 0.0173}
    assert sum(body["lost"].values()) == 12
    assert body["nulls"] == []


def test_numbers_that_are_none_become_null_with_their_place_and_reason():
    rows = tuple(
        ResultRow(arm="a/b~c", task="t", metric="m", value=value, ci95=(-math.inf, 1.0))
        for value in (math.nan, math.inf)
    )
    body = strictly(to_json(replace(IMAGE, results=rows, differences=(), faults={"a/b~c": math.nan})))
    VALIDATOR.validate(body)
    assert [row["value"] for row in body["results"]] == [None, None]
    assert {(null["path"], null["reason"]) for null in body["nulls"]} == {
        ("/results/0/value", "nan"),
        ("/results/1/value", "inf"),
        ("/results/0/ci95/0", "-inf"),
        ("/results/1/ci95/0", "-inf"),
        ("/faults/a~1b~0c", "nan"),
    }


def test_without_privacy_the_shape_stays_and_claims_none():
    body = strictly(to_json(unprotected_report()))
    assert body["privacy"]["unit"] is None
    assert body["privacy"]["claim"] == "none"
    assert {row["claim"] for row in body["privacy"]["per_site"]} == {"none"}
    assert [row["site"] for row in body["privacy"]["per_site"]] == body["sites"]


def test_numpy_numbers_are_numbers():
    row = ResultRow(
        arm="a", task="t", metric="m", value=np.float32(0.5), ci95=(np.float64(0.25), np.float32("nan"))
    )
    body = strictly(to_json(replace(IMAGE, results=(row,), differences=(), seed=np.int64(3))))
    assert (body["seed"], body["results"][0]["value"], body["results"][0]["ci95"]) == (3, 0.5, [0.25, None])


def test_what_json_cannot_hold_is_refused_by_place():
    with pytest.raises(ValueError, match="/faults/site-1 holds a object"):
        to_json(replace(IMAGE, faults={"site-1": object()}))


def test_names_in_every_script_survive():
    report = replace(IMAGE, name="Klinik für Radiologie 北京 <script>")
    assert strictly(to_json(report))["name"] == report.name
