"""From what pydantic says to what a person can act on: key, line, value, rule, nearest valid name."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deploy.documents import Document, Key, dotted
from deploy.errors import Problem

_MAX_SHOWN = 60

_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a dictionary (key: value)",
    "model_type": "a dictionary (key: value)",
    "model_attributes_type": "a dictionary (key: value)",
    "literal_error": "one of {expected}",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text, not empty",
    "string_pattern_mismatch": "a name of letters, digits, `.`, `_`, `-`",
}

# Follow from a wrong item: the list without it is too short, or is not the word that may stand for the list.
_OF_WHOLE_LISTS = ("too_short", "literal_error")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice most like `name`, or an empty text when none is near or two are equally near."""
    options = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), options, n=2, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, option, name.lower()).ratio() for option in found]
    if not found or (len(found) == 2 and likeness[0] == likeness[1]):
        return ""
    return options[found[0]]


def at(
    document: Document,
    path: Key,
    rule: str,
    *,
    choices: Iterable[str] = (),
    show_value: bool = True,
) -> Problem:
    """Return a problem at a path of a document, with its line, its value and the nearest valid name."""
    found = _lookup(document.value, path)
    return Problem(
        path=dotted(path),
        rule=rule,
        value=show(found) if show_value and found is not ... else "",
        where=place(document, path),
        suggestion=nearest(found, choices) if isinstance(found, str) else "",
    )


def place(document: Document, path: Key) -> str:
    """Return `line N` (or `--set`) of a path, or of the nearest key above it."""
    for end in range(len(path), 0, -1):
        line = document.lines.get(path[:end])
        if line is not None:
            return f"line {line}" if line > 0 else "--set"
    return ""


def show(value: Any) -> str:  # noqa: ANN401 - any value of a document
    """Return a short text of a value, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 4] + " ..."


def translate(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Problem]:
    """Return the problems of a failed validation, one for each path, in the order of the file."""
    grouped: dict[Key, list[Problem]] = {}
    details = error.errors(include_url=False, include_context=True)
    paths = [_path(detail, document.value) for detail in details]
    for detail, path in zip(details, paths, strict=True):
        if detail["type"] == "default_factory_not_called":  # follows from another problem
            continue
        if detail["type"] in _OF_WHOLE_LISTS and any(
            len(path) < len(other) and other[: len(path)] == path for other in paths
        ):
            continue
        grouped.setdefault(path, []).append(_problem(detail, path, document, model))
    return [_merge(problems) for problems in grouped.values()]


def without_unknown_keys(error: ValidationError, value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a copy of what was validated without the keys that were refused as unknown."""
    pruned = copy.deepcopy(value)
    for detail in error.errors(include_url=False):
        if detail["type"] == "extra_forbidden":
            *path, key = _path(detail, value)
            parent = _lookup(pruned, tuple(path))
            parent.pop(key)
    return pruned


def in_file_order(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems by line; those without one keep their order, first."""
    return sorted(
        problems, key=lambda problem: int(problem.where[5:]) if problem.where.startswith("line ") else 0
    )


def _problem(detail: ErrorDetails, path: Key, document: Document, model: type[BaseModel]) -> Problem:
    """Return the problem that one of pydantic's errors describes."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return at(document, path, "is required")
    if kind == "extra_forbidden":
        names = valid_names(model, path[:-1], document.value)
        problem = at(document, path, "unknown key; valid here: " + ", ".join(names))
        return dataclasses.replace(problem, suggestion=nearest(str(path[-1]), names))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        kinds = _kinds(model, path, document.value)
        rule = "must be one of " if kind == "union_tag_invalid" else "is required: one of "
        return at(document, (*path, "kind"), rule + ", ".join(kinds), choices=kinds)
    rule = _TYPES.get(kind, "")
    if kind == "literal_error" and " or " not in context["expected"]:
        rule = "{expected}"
    text = "must be " + rule.format(**_plain(context)) if rule else str(context.get("error", detail["msg"]))
    return at(document, path, text, choices=re.findall(r"'([^']*)'", str(context.get("expected", ""))))


def _plain(context: Mapping[str, Any]) -> dict[str, str]:
    """Return the constants of a rule as text, without quotes and Python's repr."""
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value).replace("'", "")
        for name, value in context.items()
    }


def _merge(problems: Sequence[Problem]) -> Problem:
    """Return one problem for the branches of a union."""
    rules = list(dict.fromkeys(problem.rule.removeprefix("must be ") for problem in problems))
    if len(rules) == 1:
        return problems[0]
    suggestion = next((problem.suggestion for problem in problems if problem.suggestion), "")
    return dataclasses.replace(problems[0], rule="must be " + ", or ".join(rules), suggestion=suggestion)


def _path(detail: ErrorDetails, value: Any) -> Key:  # noqa: ANN401 - any value of a document
    """Return the path in the document: pydantic's, without the names of union branches that it adds."""
    path: list[str | int] = []
    location = detail["loc"]
    for index, part in enumerate(location):
        missing = detail["type"] == "missing" and index == len(location) - 1
        if missing or _has(value, part):
            path.append(part)
            value = None if missing else value[part]
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:  # noqa: ANN401 - any value of a document
    """Return whether a value has an entry of this name or number."""
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def valid_names(model: type[BaseModel], path: Key, value: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Return the keys that are valid at a path of a document described by `model`."""
    inside = _lookup(value, path)
    found = _models(_annotation(model, path, value), None if inside is ... else inside)
    return sorted({name for each in found for name in each.model_fields})


def _annotation(model: type[BaseModel], path: Key, value: Any) -> Any:  # noqa: ANN401 - type annotations
    """Return the annotation of what lies at a path of a document described by `model`."""
    annotation: Any = model
    for part in path:
        annotation = _child(annotation, part, value)
        value = value[part] if _has(value, part) else None
    return annotation


def _child(annotation: Any, part: str | int, value: Any) -> Any:  # noqa: ANN401 - type annotations
    """Return the annotation of the entry `part` of something annotated so."""
    for model in _models(annotation, value):
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation
        if model.model_config.get("extra") == "allow":
            return get_type_hints(model)["__pydantic_extra__"]
    return annotation  # a dictionary of models, or a list of them: its models are found inside the annotation


def _models(annotation: Any, value: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - type annotations
    """Return the models inside an annotation; of several kinds, the one that `value` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inside = [model for argument in get_args(annotation) for model in _models(argument, value)]
    kind = value.get("kind") if isinstance(value, dict) else None
    named = [
        model
        for model in inside
        if "kind" in model.model_fields and model.model_fields["kind"].default == kind
    ]
    return named or inside


def _lookup(value: Any, path: Key) -> Any:  # noqa: ANN401 - any value of a document
    """Return the entry at a path, or `...` if there is none."""
    for part in path:
        if not _has(value, part):
            return ...
        value = value[part]
    return value


def _kinds(model: type[BaseModel], path: Key, value: Any) -> list[str]:  # noqa: ANN401 - JSON
    """Return the kinds of section that there are at a path of a document described by `model`."""
    annotation = _annotation(model, path, value)
    return [each.model_fields["kind"].default for each in _models(annotation, None)]
