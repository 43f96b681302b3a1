"""The version of this package as far as caches care: its own source text.

A number raised by hand is forgotten sooner or later, and then a cache serves what the code no longer makes.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy
import scipy
import torch


@cache
def code_version() -> str:
    """Return a digest of this package's sources and of the libraries below it: part of every cache key."""
    digest = hashlib.sha256(f"{numpy.__version__} {scipy.__version__} {torch.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
