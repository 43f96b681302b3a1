"""Errors of `vae`.

    VaeError
    ├── DataError            the data cannot be used as they are
    │   ├── HostileFileError   a file claims or contains what no scan should; refused before decoding
    │   ├── DataNotReadyError  too many records were quarantined, or nothing usable is left
    │   └── FetchError         a public data set could not be obtained
    ├── WeightsError         weights do not have exactly the expected names, shapes and dtypes
    └── ModelSpecError       a model cannot be built from this specification

Our own code called wrongly raises `ValueError` or `RuntimeError`, never one of these.
"""

from __future__ import annotations


class VaeError(Exception):
    """Base of every domain error of this package; the message names the thing, the rule and the way out."""


class DataError(VaeError):
    """The data cannot be used as they are."""


class HostileFileError(DataError):
    """A file claims or contains what no scan should; it was refused before decoding."""


class DataNotReadyError(DataError):
    """Too many records were quarantined, or nothing usable is left."""


class FetchError(DataError):
    """A public data set could not be obtained."""


class WeightsError(VaeError):
    """Weights do not have exactly the expected names, shapes and dtypes."""


class ModelSpecError(VaeError):
    """A model cannot be built from this specification."""
