"""Which kind of file system a folder lies on, by the system's own list (`/proc/mounts`)."""

from __future__ import annotations

import re
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")


def mount_of(folder: Path, mounts: Path) -> str:
    """Return the kind of file system of a folder, such as `ext4`; empty if the list cannot be read.

    Args:
        folder: Has to be there.
        mounts: Lines of `device place kind options ...`; a place later in the list covers an earlier one.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    here = folder.resolve()
    deepest, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[1]))
        if here.is_relative_to(place) and len(place.parts) >= deepest:
            deepest, kind = len(place.parts), fields[2]
    return kind
