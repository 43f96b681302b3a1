"""Strict YAML: what a person sees in the file is what the program gets, or an error that names the line.

PyYAML alone follows YAML 1.1 (6.0.3: `1e-5` is text, `010` is 8, `no` is false, the last of two equal keys
wins). Here values follow the core schema of YAML 1.2, and whatever reads differently in the two versions is
either literal text (`no`, `on`, `nan`, `12:30`, dates) or refused (`010`, `0x1f`, `1_000`). Also refused,
each with its line: tags, anchors and aliases (a few lines of them can unfold to gigabytes), merge keys,
duplicate keys, `.nan`, `.inf`, numbers that overflow, keys that are not text, directives and further
documents, nesting beyond `MAX_DEPTH`, files beyond `MAX_BYTES`.

The value is built from the parser's events, so nothing unfolds and nothing is constructed but text, numbers,
true, false, null, lists and dictionaries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

Key = tuple[str | int, ...]

_WORDS: dict[str, bool | None] = {
    "": None,
    **dict.fromkeys(("~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
_OTHER_BASE = re.compile(r"[-+]?0[xob][0-9a-f_]+", re.IGNORECASE)
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A strict YAML file as read.

    Attributes:
        source: Name of the file, for messages.
        value: Dictionaries, lists, text, numbers, true, false, null.
        lines: Path of every key and item -> its line, from 1.
    """

    source: str
    value: Any
    lines: Mapping[Key, int]


def load_yaml(path: Path | str) -> Any:  # noqa: ANN401 - whatever the file holds; callers validate it
    """Return the value of a strict YAML file.

    Raises:
        ConfigError: the file cannot be read or breaks a rule of this module; all problems at once.
    """
    return load_document(path).value


def load_document(path: Path | str) -> Document:
    """Return the value of a strict YAML file and the line of every key in it.

    Raises:
        ConfigError: the file cannot be read or breaks a rule of this module; all problems at once.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ConfigError(str(file), [Problem(path="", rule=f"cannot be read: {reason}")]) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(str(file), [Problem(path="", rule=f"must be at most {MAX_BYTES} bytes")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), [Problem(path="", rule="must be UTF-8 text")]) from error
    return parse(text, source=str(file))


def parse(text: str, *, source: str = "text") -> Document:
    """Return the document that a text describes.

    Raises:
        ConfigError: the text breaks a rule of this module; all problems at once.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
            if builder.stop:
                break
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        builder.refuse(line, f"not YAML: {error.problem or error.context or 'cannot be parsed'}")
    except yaml.YAMLError as error:
        builder.refuse(0, f"not YAML: {str(error).splitlines()[0]}")
    if builder.problems:
        raise ConfigError(source, builder.problems)
    return Document(source=source, value=builder.value, lines=builder.lines)


def resolve_scalar(text: str) -> Any:  # noqa: ANN401 - text, number, true, false or null
    """Return what an unquoted scalar means (core schema of YAML 1.2).

    Raises:
        ValueError: the text would be a different number to a different reader, or is no finite number.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("must be a finite number; quote it if it is text")
    if _OTHER_BASE.fullmatch(text) or _GROUPED.fullmatch(text):
        raise ValueError("write numbers in plain decimal digits, or quote it if it is text")
    if not _FLOAT.fullmatch(text):
        return text
    digits = text.lstrip("+-")
    if digits.isdigit():
        rule = "a leading zero means base 8 to some readers" if digits[0] == "0" else "too many digits"
        raise ValueError(f"{rule}; write it as a decimal number, or quote it if it is text")
    if digits[0] == "0" and digits[1:2].isdigit():
        raise ValueError("a leading zero means base 8 to some readers; write it without, or quote text")
    number = float(text)
    if math.isinf(number):
        raise ValueError("too large for a number")
    return number


def dump_yaml(value: Any) -> str:  # noqa: ANN401 - any value that `parse` can return
    """Return YAML that `parse` reads back to an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def dotted(path: Key) -> str:
    """Return a path as a person writes it: `data.sites.north.root`, `arms[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting every text that our reader would not read back as that text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401 - any value
        """Write a value out wherever it stands: our reader takes no aliases."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Return a scalar node, quoted where the plain form means something else to us."""
    try:
        plain = resolve_scalar(text) == text
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, yaml.representer.SafeRepresenter.represent_list)


@dataclass
class _Open:
    """A dictionary or list that is being filled."""

    path: Key
    items: dict[str, Any] | list[Any]
    key: str | None = None


@dataclass
class _Builder:
    """Builds the value from the parser's events and collects what is refused."""

    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    stop: bool = False
    _stack: list[_Open] = field(default_factory=list)
    _documents: int = 0

    def refuse(self, line: int, rule: str, *, path: Key = (), value: str = "") -> None:
        """Note a problem."""
        where = f"line {line}" if line else ""
        self.problems.append(Problem(path=dotted(path), rule=rule, value=value, where=where))

    def take(self, event: yaml.Event) -> None:
        """Take the next event."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            self._place(None, line, value="*" + (event.anchor or ""))
            self.refuse(line, "aliases are not allowed; write the value out", value=f"*{event.anchor}")
        elif isinstance(event, yaml.ScalarEvent):
            self._check_marks(event, line)
            self._scalar(event, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._check_marks(event, line)
            self._open(event, line)

    def _start_document(self, event: yaml.DocumentStartEvent, line: int) -> None:
        self._documents += 1
        if self._documents > 1:
            self.refuse(line, "one document a file: remove the second `---`")
            self.stop = True
        if event.version or event.tags:
            self.refuse(line, "directives (%YAML, %TAG) are not allowed")

    def _check_marks(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor:
            self.refuse(line, "anchors are not allowed; write the value out", value=f"&{event.anchor}")
        if event.tag:
            self.refuse(line, "tags are not allowed; remove it", value=event.tag)

    def _open(self, event: yaml.CollectionStartEvent, line: int) -> None:
        items: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._place(items, line, value="a dictionary or list")
        self._stack.append(_Open(path=path, items=items))
        if len(self._stack) > MAX_DEPTH:
            self.refuse(line, f"nested more than {MAX_DEPTH} levels deep")
            self.stop = True

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        plain = event.implicit[0]
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.items, dict) and top.key is None:
            self._key(top, event.value, line, plain=plain)
            return
        item, rule = event.value, ""
        if plain:
            try:
                item = resolve_scalar(event.value)
            except ValueError as error:
                rule = str(error)
        path = self._place(item, line, value=event.value)
        if rule:
            self.refuse(line, rule, path=path, value=event.value)

    def _key(self, top: _Open, key: str, line: int, *, plain: bool) -> None:
        path = (*top.path, key)
        if plain and key in ("<<", "", "~"):
            self.refuse(line, "merge keys and empty keys are not allowed; write the entries out", path=path)
        if key in top.items:
            self.refuse(line, f"given twice; first in line {self.lines[path]}", path=path)
        else:
            self.lines[path] = line
        top.key = key

    def _place(self, item: Any, line: int, *, value: str) -> Key:  # noqa: ANN401 - part of a document
        """Put an item where it belongs and return its path."""
        if not self._stack:
            self.value = item
            return ()
        top = self._stack[-1]
        if isinstance(top.items, list):
            top.items.append(item)
            path: Key = (*top.path, len(top.items) - 1)
            self.lines[path] = line
            return path
        if top.key is None:
            self.refuse(line, "keys must be text", path=top.path, value=value)
            top.key = "?"
            return (*top.path, "?")
        key, top.key = top.key, None
        top.items.setdefault(key, item)
        return (*top.path, key)
