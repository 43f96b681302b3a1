"""Test data that may lie beside a checkout, in `../shared/data`; the product never reads it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


def shared_data(name: str) -> Path:
    """Return a file or folder of `../shared/data`, or skip the test and say what is missing."""
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name} beside the checkout")
    return path
