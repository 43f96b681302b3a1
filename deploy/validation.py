"""From a strict YAML document to a frozen pydantic model, or to every problem of the document at once.

Used for every kind of configuration file (`deploy.config`, `deploy.site`), so that one rule holds: pydantic's own
problems and those between fields are reported together, in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from deploy.documents import Document
from deploy.errors import ConfigError, Problem
from deploy.problems import in_file_order, translate, without_unknown_keys
from deploy.sections import STRICT

M = TypeVar("M", bound=BaseModel)
Check = Callable[[Mapping[str, Any], Document], list[Problem]]


def validate_document(
    document: Document, model: type[M], check: Check, *, folder: Path, problems: Sequence[Problem] = ()
) -> M:
    """Return the model that a document describes.

    Args:
        document: As read.
        model: What it should describe.
        check: Returns the problems between sections; takes each section that is valid by itself.
        folder: Relative paths count from here.
        problems: Already known ones, reported with the rest.

    Raises:
        ConfigError: with every problem.
    """
    found = list(problems)
    made: M | None = None
    if not isinstance(document.value, dict):
        required = ", ".join(f"`{name}`" for name, info in model.model_fields.items() if info.is_required())
        found.append(Problem(path="", rule=f"must be a dictionary (key: value) with at least {required}"))
        raise ConfigError(document.source, found)
    context = {"folder": folder.absolute()}
    try:
        made = model.model_validate_json(json.dumps(document.value), context=context)
    except ValidationError as error:
        found += translate(error, document, model)
    found += check(_sections(document, model, context), document)
    if found or made is None:
        raise ConfigError(document.source, in_file_order(found))
    return made


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a kind of configuration file, for editors."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": model.__name__, **model.model_json_schema()}


def _sections(document: Document, model: type[BaseModel], context: dict[str, Path]) -> dict[str, Any]:
    """Return each section that is valid by itself, so that rules across sections see all they can."""
    sections: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name in document.value:
            found = _section(name, info, {name: document.value[name]}, context)
            sections.update({} if found is None else {name: getattr(found, name)})
        elif not info.is_required() and info.default_factory is None:
            sections[name] = info.default
    return sections


def _section(name: str, info: FieldInfo, value: dict[str, Any], context: dict[str, Path]) -> BaseModel | None:
    """Return a model of one section alone; unknown keys are left out, so that they hide no other problem."""
    fields: dict[str, Any] = {name: (info.annotation, info)}
    alone: type[BaseModel] = create_model("Section", __config__=STRICT, **fields)
    try:
        return alone.model_validate_json(json.dumps(value), context=context)
    except ValidationError as error:
        known = without_unknown_keys(error, value)
    try:
        return alone.model_validate_json(json.dumps(known), context=context)
    except ValidationError:
        return None
