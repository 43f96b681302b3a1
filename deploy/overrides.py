"""Overrides from the command line: `--set federation.rounds=5`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from deploy.documents import Document, Key, parse
from deploy.errors import ConfigError, Problem


def apply_overrides(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Problem]]:
    """Return the document with values replaced, and what is wrong with the overrides.

    Args:
        document: As read; not changed.
        overrides: `key=value` each. The key is dotted (`faults.site-2.drop`, `arms.0`); missing sections are
            made. The value is read by the rules of the file: `null`, `[1, 2]` and `{a: 1}` work.
    """
    value = copy.deepcopy(document.value) if document.value is not None else {}
    lines = dict(document.lines)
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            problems.append(
                Problem(path="", value=override, where="--set", rule="must be key=value, such as seed=2")
            )
            continue
        try:
            item = parse(text, source="--set").value
        except ConfigError as error:
            problems += [
                dataclasses.replace(each, path=key.strip(), where="--set") for each in error.problems
            ]
            continue
        where = _put(value, path, item)
        if where is None:
            rule = "leads through a value that is no dictionary"
            problems.append(Problem(path=key.strip(), value=text, where="--set", rule=rule))
            continue
        for known in [known for known in lines if known[: len(where)] == where]:
            del lines[known]
        lines[where] = 0
    return dataclasses.replace(document, value=value, lines=lines), problems


def _put(value: Any, path: tuple[str, ...], item: Any) -> Key | None:  # noqa: ANN401 - JSON
    """Put an item at a path and return the path as `Document.lines` has it; None if it leads nowhere."""
    done: list[str | int] = []
    for index, part in enumerate(path):
        last = index == len(path) - 1
        if isinstance(value, list):
            if not part.isdecimal() or int(part) >= len(value):
                return None
            position = int(part)
            done.append(position)
            if last:
                value[position] = item
            value = value[position]
        elif isinstance(value, dict):
            done.append(part)
            if last:
                value[part] = item
            elif value.get(part) is None:
                value[part] = {}
            value = value[part]
        else:
            return None
    return tuple(done)
