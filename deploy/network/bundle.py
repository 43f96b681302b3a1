"""The code that a run is made of: Flower carries it from the centre to every SuperNode as one archive."""

from __future__ import annotations

from pathlib import Path


def bundle_folder() -> Path:
    """Return the folder of this project, whose `pyproject.toml` says what belongs to the archive."""
    return Path(__file__).resolve().parents[2]
