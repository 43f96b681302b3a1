"""Rows of a CSV or TSV file, as text, with their line numbers; nothing is guessed or filled in.

Guarantees: the file lies below its root and under a size cap; a row with another number of cells than
the header is returned with a reason, never cut or padded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vae.data.limits import read_some
from vae.data.paths import open_inside
from vae.data.quarantine import Reason
from vae.errors import DataError

MAX_TABLE_BYTES = 256 * 1024**2
MAX_COLUMNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its line in the file, its cells by column, and why it cannot be used if so."""

    line: int
    cells: Mapping[str, str] = field(repr=False)
    reason: Reason | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The columns of a table and its rows."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)


def read_rows(root: str | Path, path: str | Path) -> Rows:
    """Read a table: tabs for `.tsv`; for others semicolons if the header has them and no comma, else
    commas.

    Args:
        root: Folder that the table must lie in.
        path: Relative to it; UTF-8, with or without a byte order mark, first line the column names.

    Raises:
        DataError: not there, too large, not UTF-8, no header, or a column twice.
    """
    with open_inside(root, path) as stream:
        content = read_some(stream, MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise DataError(f"table {path} is over {MAX_TABLE_BYTES} bytes; split it or drop columns")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    header, _, _ = text.partition("\n")
    comma = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if str(path).endswith(".tsv") else comma
    )
    try:
        names = tuple(name.strip() for name in next(reader, []))
        _check_names(names, path)
        return Rows(columns=names, rows=tuple(_rows(reader, names)))
    except csv.Error as error:
        raise DataError(f"table {path}, line {reader.line_num}: {error}; export it again") from None


def require_columns(rows: Rows, names: Iterable[str], path: str | Path) -> None:
    """Refuse a table without the named columns.

    Raises:
        DataError: naming those that are missing and those that are there.
    """
    missing = [name for name in dict.fromkeys(names) if name not in rows.columns]
    if missing:
        there = ", ".join(rows.columns[:20])
        raise DataError(
            f"table {path} has no column {', '.join(map(repr, missing))}; its columns are: {there}"
        )


def _check_names(names: tuple[str, ...], path: str | Path) -> None:
    """Refuse a header that is empty, too wide or ambiguous."""
    if not names or not all(names):
        raise DataError(f"table {path}: the first line must name every column")
    if len(names) > MAX_COLUMNS:
        raise DataError(f"table {path} has {len(names)} columns, over the limit of {MAX_COLUMNS}")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"table {path}: column {twice[0]!r} occurs twice; rename one")


def _rows(reader: Iterator[list[str]], names: tuple[str, ...]) -> Iterator[Row]:
    """Yield rows with their line numbers; empty lines are no rows."""
    for cells in reader:
        line = int(getattr(reader, "line_num", 0))
        if not cells:
            continue
        reason = None if len(cells) == len(names) else Reason.ROW
        yield Row(line=line, cells={} if reason else dict(zip(names, cells, strict=True)), reason=reason)
