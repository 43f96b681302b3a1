"""Files and records that are refused: a closed list of reasons, and the local list of names.

Guarantees: a `Reason` says nothing of one patient, so it may be counted in a report. A `Quarantine`
holds file names and stays at the site: its `repr` hides them and `write` makes a file that only its
owner can read.
What it does not do: decide what is refused (`gate`, `intake`).

    DataError
    └── HostileFileError
        └── RefusedFileError   one file or record is refused, with its `Reason`
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vae.data.durable import write_atomically
from vae.errors import HostileFileError


class Reason(StrEnum):
    """Why a file or record is refused. Closed: a report counts these and nothing else."""

    OUTSIDE_ROOT = "outside-data-root"
    NAME_FORBIDDEN = "name-forbidden"
    LINKED_FOLDER = "linked-folder"
    FILE_MISSING = "file-missing"
    NOT_REGULAR = "not-a-regular-file"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TRAILING_DATA = "trailing-data"
    TOO_LARGE = "too-large"
    RATIO = "compression-ratio"
    HEADER = "header-malformed"
    DIMENSIONS = "dimensions"
    DTYPE = "dtype"
    VOXEL_SIZE = "voxel-size"
    AFFINE = "affine"
    CODEC = "codec"
    DECODING = "decoding-failed"
    PREPARATION = "preparation-failed"
    NON_FINITE = "non-finite-voxels"
    CONSTANT = "constant-image"
    SERIES = "series-inconsistent"
    SLICES = "slices-missing"
    CHANNEL_MISSING = "channel-missing"
    CHANNEL_AMBIGUOUS = "channel-ambiguous"
    CHANNEL_GRID = "channel-grids-differ"
    PATIENT = "patient-unclear"
    COVARIATE = "covariate-missing"
    VALUE = "value-missing-or-malformed"
    ROW = "row-malformed"


REMEDIES: dict[Reason, str] = {
    Reason.OUTSIDE_ROOT: "copy the file below the data root, or make the root the folder that holds it",
    Reason.NAME_FORBIDDEN: "rename: no control characters (newline, NUL) in names",
    Reason.LINKED_FOLDER: "links to folders are not followed: copy or bind-mount them below the data root",
    Reason.FILE_MISSING: "restore the file or remove its row from the table",
    Reason.NOT_REGULAR: "pipes, devices and folders are not scans: remove it",
    Reason.UNREADABLE: "give the account that runs the site read permission",
    Reason.TRUNCATED: "the header promises more data than there is: export or copy the file again",
    Reason.TRAILING_DATA: "data goes on after the image that the header declares: export the file again",
    Reason.TOO_LARGE: "more voxels or bytes than the limit: crop or downsample before import",
    Reason.RATIO: "compressed far more than a scan can be: check the file, store it uncompressed",
    Reason.HEADER: "not a readable single-file NIfTI-1/2 or DICOM header: export the file again",
    Reason.DIMENSIONS: "give one 3-D volume a file: split time series, drop empty axes",
    Reason.DTYPE: "store (u)int8/16/32 or float32/64 grey values",
    Reason.VOXEL_SIZE: "voxel sizes must be positive, finite and plausible in mm: repair the header",
    Reason.AFFINE: "the orientation matrix is singular or not finite: repair the header",
    Reason.CODEC: "compressed DICOM is refused: export as Explicit VR Little Endian",
    Reason.DECODING: "the pixel data cannot be read: export the file again",
    Reason.PREPARATION: "the scan cannot be brought to the grid of the study: check its orientation and size",
    Reason.NON_FINITE: "the image holds NaN or infinity: replace them (background: 0)",
    Reason.CONSTANT: "every voxel has the same value after windowing: check the scan and the window",
    Reason.SERIES: "slices of a folder must share patient, series, size and orientation: one series a folder",
    Reason.SLICES: "slices are missing or unevenly spaced: export the whole series",
    Reason.CHANNEL_MISSING: "the visit lacks one of the suffixes: remove the visit or choose fewer suffixes",
    Reason.CHANNEL_AMBIGUOUS: "several files of one suffix in a visit: list the chosen ones in a table",
    Reason.CHANNEL_GRID: "channels must lie on one grid: register them to the first suffix",
    Reason.PATIENT: "no patient, or two different ones, for this record: repair names or the patient column",
    Reason.COVARIATE: "fill in the covariate (a number, decimal point) or leave the covariate out",
    Reason.VALUE: "fill in the feature (a number, decimal point) or leave the feature out",
    Reason.ROW: "the row has another number of cells than the header",
}


class RefusedFileError(HostileFileError):
    """One file or record is refused.

    Attributes:
        reason: The code to count; the message may name the file and stays local.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{message} [{reason.value}]; {REMEDIES[reason]}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One refused record: local name (hidden from `repr`) and reason."""

    record: str = field(repr=False)
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """All refused records of one data set. Local: never sent, logged or put into a report."""

    entries: tuple[Entry, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the number of refused records by reason, sorted by reason."""
        return dict(sorted(Counter(entry.reason.value for entry in self.entries).items()))

    def lines(self) -> list[str]:
        """Return `reason<TAB>name` for each record; escaped, so that a name cannot forge a line."""
        return [
            f"{e.reason.value}\t{e.record.encode('unicode_escape').decode('ascii')}" for e in self.entries
        ]

    def write(self, path: Path) -> None:
        """Write the lines to a file, atomically, readable by the owner alone (mode 0600)."""
        write_atomically(path, "".join(f"{line}\n" for line in self.lines()).encode())
