"""Checkpoints: everything a run needs to go on after any round, written whole or not at all.

A checkpoint is a folder `round-000012` of three files: `weights.safetensors`, `optimiser.safetensors` and
`manifest.json`, which holds everything else, the SHA-256 of both and its own; where a run keeps an average of its
weights, `average.safetensors` is a fourth. It is written under a temporary
name, synced, renamed, and its parent synced; the last few are kept.

Guarantees (tests/unit/server/test_checkpoint.py, test_checkpoint_kill.py):
    Killed at any moment, `latest` returns the newest checkpoint that was saved completely. A torn or altered
    one is never returned: it is skipped with a warning. Nothing in it is pickled.

It does not protect against somebody who may write to the folder (they can compute hashes, too), and holds no
data of patients: weights, public settings, claims and codes only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.contract import FailureCode, Weights
from server.admission import Rejection, RejectionCode
from server.errors import CheckpointError
from vae import weights as rest
from vae.errors import WeightsError

FORMAT = 1
_WEIGHTS, _OPTIMISER, _MANIFEST = "weights.safetensors", "optimiser.safetensors", "manifest.json"
_AVERAGE = "average.safetensors"
_NAME = re.compile(r"round-(\d{6,})")
_TEMPORARY = ".writing-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a federation after a round; all of it public.

    Attributes:
        round: Global round that was just completed, >= 0.
        run_id: Names the run.
        config_hash: Of the configuration that the run must keep.
        weights: Shared weights, name -> float32.
        optimiser: State of the server's optimiser, name -> float32.
        rejections: All so far.
        claims: Site -> its latest admitted claim, as JSON.
        participation: For each round from 1: site -> `admitted`, or why not.
        heads: Ledger heads that were kept, as `server.witness` gives them.
        average: Of the weights over rounds, name -> float32; empty where none is kept.
    """

    round: int
    run_id: str
    config_hash: str
    weights: Weights
    optimiser: Weights = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)
    participation: tuple[Mapping[str, str], ...] = ()
    heads: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    average: Weights = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    Args:
        folder: Where checkpoints lie; made if it does not exist.
        checkpoint: What to write; one of the same round is replaced.
        keep: How many stay, >= 1; with two or more there is one to fall back to.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the disk is full or fails; earlier checkpoints are as they were.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the checkpoint just written must stay")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        target = folder / f"round-{checkpoint.round:06d}"
        with _written_aside(folder, target) as temporary:
            _write(temporary, checkpoint)
        for _, old in _candidates(folder)[keep:]:
            shutil.rmtree(old)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: checkpoint of round {checkpoint.round} not written: {error.strerror}"
        ) from error
    return target


def latest(folder: Path, *, config_hash: str | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None if there is none.

    Args:
        folder: Where checkpoints lie; need not exist.
        config_hash: What the configuration's hash is now; None does not compare.

    Raises:
        CheckpointError: there are checkpoints but none is whole, or the run was configured otherwise.
    """
    candidates = _candidates(folder)
    for round_, path in candidates:
        try:
            checkpoint = _read(path, round_)
        except (CheckpointError, WeightsError, OSError) as error:
            _log.warning("checkpoint %s is skipped: %s", path.name, error)
            continue
        if config_hash is not None and checkpoint.config_hash != config_hash:
            raise CheckpointError(
                f"{path} was made with configuration {checkpoint.config_hash[:12]}, this one is "
                f"{config_hash[:12]}; give the former configuration or another --out, or begin again with --fresh"
            )
        return checkpoint
    if candidates:
        raise CheckpointError(
            f"{folder}: none of {len(candidates)} checkpoints is whole; --fresh begins again"
        )
    return None


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """Return (round, folder) of everything that is named like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


@contextlib.contextmanager
def _written_aside(folder: Path, target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` at once if the block succeeds, and vanishes if not."""
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_TEMPORARY))
    try:
        yield temporary
        _sync_folder(temporary)
        if (
            target.exists()
        ):  # an unreadable one of this round: aside first, a folder cannot be renamed over another
            target.rename(Path(tempfile.mkdtemp(dir=folder, prefix=_TEMPORARY)) / target.name)
        temporary.rename(target)
        _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _sweep(folder)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files, each synced; their folder is synced once, by the one that made it."""
    arrays = {_WEIGHTS: checkpoint.weights, _OPTIMISER: checkpoint.optimiser}
    if checkpoint.average:
        arrays[_AVERAGE] = checkpoint.average
    for name, weights in arrays.items():
        rest.save(folder / name, weights, {"round": str(checkpoint.round)}, sync_folder=False)
    body = {
        "format": FORMAT,
        "round": checkpoint.round,
        "run_id": checkpoint.run_id,
        "config_hash": checkpoint.config_hash,
        "files": {name: _hash_file(folder / name) for name in arrays},
        "signatures": {name: rest.signature(weights) for name, weights in arrays.items()},
        "rejections": [_rejection_to_dict(rejection) for rejection in checkpoint.rejections],
        "claims": dict(checkpoint.claims),
        "participation": [dict(status) for status in checkpoint.participation],
        "heads": dict(checkpoint.heads),
    }
    text = _canonical(body)
    with (folder / _MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text}))
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, round_: int) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises:
        CheckpointError, WeightsError, OSError: it is not whole.
    """
    body = _read_manifest(folder / _MANIFEST)
    if body["format"] != FORMAT or body["round"] != round_:
        raise CheckpointError(
            f"format {body['format']}, round {body['round']}: not format {FORMAT}, round {round_}"
        )
    names = [name for name in (_WEIGHTS, _OPTIMISER, _AVERAGE) if name != _AVERAGE or name in body["files"]]
    for name in names:
        if _hash_file(folder / name) != body["files"][name]:
            raise CheckpointError(f"{name} is not what was written: its SHA-256 differs")
    arrays = {
        name: rest.load(folder / name, tuple((n, tuple(s), d) for n, s, d in body["signatures"][name]))[0]
        for name in names
    }
    return Checkpoint(
        round=round_,
        run_id=body["run_id"],
        config_hash=body["config_hash"],
        weights=arrays[_WEIGHTS],
        optimiser=arrays[_OPTIMISER],
        rejections=tuple(_rejection_from_dict(entry) for entry in body["rejections"]),
        claims=body["claims"],
        participation=tuple(body["participation"]),
        heads=body.get("heads", {}),  # checkpoints of before there were ledgers have none
        average=arrays.get(_AVERAGE, {}),
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest's body, if it is the one that was written."""
    try:
        manifest = json.loads(path.read_bytes())
        text = manifest["body"]
        whole = hashlib.sha256(text.encode()).hexdigest() == manifest["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} cannot be read") from error
    if not whole:
        raise CheckpointError(f"{path.name} is not what was written: its SHA-256 differs")
    body: dict[str, Any] = json.loads(text)
    return body


def _rejection_to_dict(rejection: Rejection) -> dict[str, Any]:
    """Return the fields as JSON values."""
    failure = None if rejection.failure is None else rejection.failure.value
    return {
        "round": rejection.round,
        "site": rejection.site,
        "code": rejection.code.value,
        "failure": failure,
    }


def _rejection_from_dict(entry: dict[str, Any]) -> Rejection:
    """Return what `_rejection_to_dict` wrote."""
    failure = None if entry["failure"] is None else FailureCode(entry["failure"])
    code = RejectionCode(entry["code"])
    return Rejection(round=entry["round"], site=entry["site"], code=code, failure=failure)


def _canonical(body: Mapping[str, Any]) -> str:
    """Return JSON with sorted keys and no spaces."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
