"""`report.json`: the report for programs, in strict JSON, with its schema.

JSON has no NaN and no infinity, so a number that is not finite becomes null, and `nulls` says where and why
(a JSON pointer, RFC 6901, and `nan`, `inf` or `-inf`). Images are not part of it. Fields are only added under
the same `schema_version`, never renamed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

from server.report.document import STATUSES, Report
from server.report.promise import claim_of
from server.report.verdict import cautions, verdict

SCHEMA_VERSION = 1

_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": "string"}
_ROUND = {"type": "integer", "minimum": 0}
_COUNT = _ROUND
_CI95 = {
    "type": ["array", "null"],
    "items": _NUMBER,
    "minItems": 2,
    "maxItems": 2,
    "description": "low, high",
}


def _object(description: str = "", /, **properties: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON Schema fragments
    """Return the schema of an object that has exactly these properties."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {**schema, "additionalProperties": False, **({"description": description} if description else {})}


def _list(items: dict[str, Any], description: str = "") -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": items, **({"description": description} if description else {})}


_PLAN = _object(
    "public constants of the privacy plan",
    sampling_probability=_NUMBER,
    noise_multiplier=_NUMBER,
    max_grad_norm=_NUMBER,
    divisor=_NUMBER,
    max_records_per_patient={"type": ["integer", "null"]},
    steps_per_round={"type": ["integer", "null"]},
    bands={"type": ["integer", "null"]},
)
_PRIVACY = _object(
    "unit and delta are null, and every claim is none, where the run was not private",
    unit={"enum": ["patient", "record", None]},
    delta=_NUMBER,
    claim={"enum": ["dp", "seeded", "none"], "description": "the weakest claim of any site"},
    per_site=_list(
        _object(
            site=_TEXT,
            epsilon_rdp=_NUMBER,
            epsilon_pld=_NUMBER,
            steps={"type": ["integer", "null"]},
            claim={"enum": ["dp", "seeded", "none"]},
            cap=_NUMBER,
        )
    ),
    curve=_list(_object(round=_ROUND, site=_TEXT, epsilon_rdp=_NUMBER, epsilon_pld=_NUMBER), "cumulative"),
    plan={"anyOf": [_PLAN, {"type": "null"}]},
    not_covered=_list(_TEXT, "what the privacy statement does not cover"),
)

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of a federated run",
    **_object(
        schema_version={"const": SCHEMA_VERSION},
        name=_TEXT,
        created={"type": "string", "description": "ISO 8601"},
        seed={"type": "integer"},
        engine=_TEXT,
        simulated={"type": "boolean"},
        rounds_planned=_ROUND,
        rounds_completed=_ROUND,
        sites=_list(_TEXT),
        model=_object(
            family=_TEXT,
            parameters={"type": "integer", "minimum": 0},
            latent_size={"type": "integer"},
            input_shape=_list({"type": "integer"}),
            sharing=_TEXT,
        ),
        privacy=_PRIVACY,
        verdict=_list(_TEXT, "plain words, generated from the numbers"),
        cautions=_list(_TEXT, "what the numbers do not show"),
        results=_list(_object(arm=_TEXT, task=_TEXT, metric=_TEXT, value=_NUMBER, ci95=_CI95)),
        differences=_list(
            _object(
                "metric(arm_a) - metric(arm_b), paired",
                arm_a=_TEXT,
                arm_b=_TEXT,
                task=_TEXT,
                metric=_TEXT,
                value=_NUMBER,
                ci95=_CI95,
            )
        ),
        rejected=_list(_object(round=_ROUND, site=_TEXT, reason=_TEXT)),
        participation=_list(_object(round=_ROUND, site=_TEXT, status={"enum": list(STATUSES)}, detail=_TEXT)),
        lost=_object("contributions by fate", **dict.fromkeys(STATUSES, _COUNT)),
        faults={"type": "object", "description": "faults that were injected, as configured"},
        timings=_object("seconds", wall_s=_NUMBER, train_cpu_s=_NUMBER, overhead_s_per_round=_NUMBER),
        weights_sha256={"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"},
        curves=_list(
            _object(site=_TEXT, round=_ROUND, reconstruction=_NUMBER, kl=_NUMBER), "simulation only"
        ),
        latents=_list(
            _object(round=_ROUND, kl_per_latent=_list(_NUMBER), active_units={"type": "integer"}),
            "simulation only",
        ),
        attacks={
            "type": ["object", "null"],
            "description": "what attacks have shown, by attack; the fields of server.report.attacks",
        },
        synthetic={"type": "boolean"},
        data_note=_TEXT,
        environment={"type": "object", "additionalProperties": _TEXT},
        config={"type": "string", "description": "resolved configuration, YAML"},
        nulls=_list(
            _object(
                path={"type": "string", "description": "JSON pointer"},
                reason={"enum": ["nan", "inf", "-inf"]},
            ),
            "numbers that were not finite",
        ),
    ),
}


def to_document(report: Report) -> dict[str, Any]:
    """Return the report as JSON values that follow `SCHEMA`."""
    fates = Counter(row.status for row in report.participation)
    body: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **{
            name: getattr(report, name)
            for name in (
                "name",
                "created",
                "seed",
                "engine",
                "simulated",
                "rounds_planned",
                "rounds_completed",
                "sites",
                "weights_sha256",
                "synthetic",
                "data_note",
                "config",
            )
        },
        "model": asdict(report.model),
        "privacy": _privacy(report),
        "verdict": verdict(report),
        "cautions": cautions(report),
        "results": [asdict(row) for row in report.results],
        "differences": [asdict(row) for row in report.differences],
        "rejected": [asdict(row) for row in report.rejected],
        "participation": [asdict(row) for row in report.participation],
        "lost": {status: fates[status] for status in STATUSES},
        "faults": dict(report.faults),
        "timings": asdict(report.timings),
        "curves": [asdict(row) for row in report.curves],
        "latents": [asdict(row) for row in report.latents],
        "environment": dict(report.environment),
        "attacks": None if report.attacks is None else asdict(report.attacks),
    }
    nulls: list[dict[str, str]] = []
    finite = _finite(body, "", nulls)
    return {**finite, "nulls": nulls}


def to_json(report: Report) -> str:
    """Return the text of `report.json`.

    Raises:
        ValueError: `faults` holds something that is not a JSON value.
    """
    return json.dumps(to_document(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _privacy(report: Report) -> dict[str, Any]:
    """Return the privacy statement in one shape, private or not."""
    if report.privacy is None:
        nobody = {"epsilon_rdp": None, "epsilon_pld": None, "steps": None, "claim": "none", "cap": None}
        return {
            "unit": None,
            "delta": None,
            "claim": "none",
            "per_site": [{"site": site, **nobody} for site in report.sites],
            "curve": [],
            "plan": None,
            "not_covered": [],
        }
    return {**asdict(report.privacy), "claim": claim_of(report)}


def _finite(value: Any, path: str, nulls: list[dict[str, str]]) -> Any:  # noqa: ANN401 - JSON values
    """Return plain JSON values; what is not finite becomes null and is noted."""
    if isinstance(value, Mapping):
        return {
            str(key): _finite(item, f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}", nulls)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_finite(item, f"{path}/{index}", nulls) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if not isinstance(value, Real):
        raise ValueError(
            f"report.json: {path} holds a {type(value).__name__}; give numbers, texts, lists or mappings"
        )
    number = float(value)
    if math.isfinite(number):
        return number
    nulls.append({"path": path, "reason": "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"})
    return None
