"""Checks of the machine: disk, open files, GPU, packages, Flower's switches."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from deploy.doctor.checks import SLOW_S, Visit, check
from deploy.doctor.findings import Said, Severity, error, note, ok, warning
from deploy.doctor.mounts import mount_of
from deploy.lock import LOCK, PROJECT, LockError, normalise, parse_requirement, requirements, satisfies

FREE_GIB = 2.0
"""With less free space a warning; a round needs room for its update, and SQLite for its journal."""

FREE_GIB_LEAST = 0.2
FSYNC_MS = 250.0
FILES = 1024
FREE_GPU_GIB = 2.0
_GIB = 2**30
_NETWORK = frozenset(
    (
        *(
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "smbfs",
            "9p",
            "virtiofs",
            "ceph",
            "glusterfs",
            "lustre",
            "gpfs",
            "beegfs",
        ),
        *("afs", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs"),
    )
)
_PASSING = frozenset(("tmpfs", "ramfs", "overlay"))
_SWITCHES = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@check(
    "disk.free",
    asks="Free space where the ledger and the prepared records lie (below 2 GiB: warning; below 0.2: error).",
    worst=Severity.ERROR,
    way_out="Free space there, or put `ledger` or the cache (FEDERATED_VAE_CACHE) on another disk.",
)
def free(visit: Visit) -> Iterator[Said]:
    """Ask how much room is left."""
    folders = {
        "the ledger": _there(Path(visit.site.ledger).parent),
        "prepared records": _there(visit.cache),
    }
    for what, folder in folders.items():
        left = shutil.disk_usage(folder).free / _GIB
        sentence = f"{left:.1f} GiB are free for {what}"
        fix = f"free space on the disk of {folder}"
        if left < FREE_GIB_LEAST:
            yield error(sentence, fix)
        else:
            yield warning(sentence, fix) if left < FREE_GIB else ok(sentence)


@check(
    "disk.fsync",
    asks="What is written to the ledger's folder can be flushed, how fast, and is the disk a lasting local one.",
    worst=Severity.ERROR,
    way_out="Put `ledger` on a local disk that this user can write to.",
)
def fsync(visit: Visit) -> Iterator[Said]:
    """Write and flush a file that has no name, so that nothing is left of it whatever happens.

    A disk that says "flushed" and lies cannot be told from an honest one this way: nothing short of cutting the power
    can. What costs almost no time may be a cache.
    """
    folder = Path(visit.site.ledger).parent
    if not folder.is_dir():
        yield error(
            "the folder of `ledger` is not there", f"mkdir -p {folder}, for this user alone (mode 700)"
        )
        return
    try:
        took = 1000 * median(_flush(folder))
    except OSError as problem:
        yield error(
            f"nothing can be written and flushed in the folder of `ledger` ({_words(problem)})",
            f"make {folder} writable for this user, and check its disk",
        )
        return
    sentence = f"a flush to disk in the ledger's folder takes {took:.1f} ms"
    slow = f"put `ledger` on a faster disk than that of {folder}: each round waits for several flushes"
    yield warning(sentence, slow) if took > FSYNC_MS else ok(sentence)
    kind = mount_of(folder, visit.mounts)
    if kind in _NETWORK:
        yield warning(
            f"the ledger lies on a network file system ({kind}), where locks and flushes are not to be relied on",
            "put `ledger` on a local disk",
        )
    elif kind in _PASSING:
        yield warning(
            f"the ledger lies on a file system that does not last ({kind}): what was spent would be forgotten",
            "put `ledger` on a disk, or in a volume of the container",
        )


@check(
    "limits.files",
    asks="How many files this user's processes may have open (below 1024: warning).",
    worst=Severity.WARNING,
    way_out="Raise `LimitNOFILE` of the service, or `ulimit -n`.",
)
def files(visit: Visit) -> Iterator[Said]:
    """Ask for the soft limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        yield ok(f"at least {FILES} files may be open")
    else:
        yield warning(f"only {soft} files may be open", f"raise `LimitNOFILE` or `ulimit -n` to {FILES}")


@check(
    "gpu.match",
    asks="The GPUs that the driver sees are those that torch can use, and have free memory.",
    worst=Severity.WARNING,
    way_out="Install a torch that was built for this driver, or end what uses the GPU.",
    at_least_s=SLOW_S,
)
def gpu(visit: Visit) -> Iterator[Said]:
    """Ask the driver and torch, which need not agree."""
    driver, cards = _cards()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver; the finding says so
        import torch

        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cards and not usable:
        yield note("there is no GPU here: training runs on the CPU")
        return
    if len(cards) != usable:
        yield warning(
            f"the driver ({driver or 'not found'}) sees {len(cards)} GPU, torch {torch.__version__} can use {usable}",
            "install a torch that was built for this driver, and check CUDA_VISIBLE_DEVICES",
        )
    for name, left in cards:
        sentence = f"{name}: {left:.1f} GiB of memory are free, driver {driver}"
        if left < FREE_GPU_GIB:
            yield warning(sentence, "end what else uses the GPU (nvidia-smi)")
        elif usable:
            yield ok(sentence)


@check(
    "packages.versions",
    asks="Installed packages are those of pyproject.toml (else error) at the versions of constraints.txt.",
    worst=Severity.ERROR,
    way_out="`make setup`.",
)
def packages(visit: Visit) -> Iterator[Said]:
    """Hold what is installed against the requirements and the lock."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = {normalise(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    wrong, other = [], []
    for line in requirements(project):
        name, clauses = parse_requirement(line)
        found = _installed(name)
        if not found or not _meets(found, clauses):
            wrong.append(f"{name} {found or 'is missing'}")
        elif found != pins.get(name, found):
            other.append(f"{name} {found} (tested: {pins[name]})")
    if wrong:
        yield error(f"not as pyproject.toml demands: {', '.join(wrong)}", "make setup")
    if other:
        yield warning(f"not the versions that were tested: {', '.join(other)}", "make setup")
    if not wrong and not other:
        shown = ", ".join(f"{name} {_installed(name)}" for name in ("flwr", "torch", "opacus"))
        yield ok(f"{shown} and the rest as in constraints.txt")


@check(
    "flower.env",
    asks="Flower phones nobody: `FLWR_TELEMETRY_ENABLED=0`, `FLWR_DISABLE_UPDATE_CHECK=1`.",
    worst=Severity.WARNING,
    way_out="Set both where the SuperNode is started, and for the user who runs this.",
)
def switches(visit: Visit) -> Iterator[Said]:
    """Look at the variables that this process was given."""
    unset = [f"{name}={value}" for name, value in _SWITCHES.items() if visit.environment.get(name) != value]
    if unset:
        yield warning(
            f"Flower reports its use, or looks for updates, on the internet: not set here: {', '.join(unset)}",
            "set it in the environment of the SuperNode (its service file), and of this shell",
        )
    else:
        yield ok("telemetry and update check of Flower are off")


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))


def _flush(folder: Path) -> list[float]:
    """Return how long some flushes of a small file in a folder took [s]."""
    took = []
    with tempfile.TemporaryFile(dir=folder, prefix=".doctor-") as file:
        for _ in range(5):
            file.write(b"\0" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    return took


def _cards() -> tuple[str, list[tuple[str, float]]]:
    """Return the driver's version, and name and free memory [GiB] of each GPU that it sees."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "", []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        cards = [
            (str(pynvml.nvmlDeviceGetName(each)), int(pynvml.nvmlDeviceGetMemoryInfo(each).free) / _GIB)
            for each in handles
        ]
        return str(pynvml.nvmlSystemGetDriverVersion()), cards
    finally:
        pynvml.nvmlShutdown()


def _installed(name: str) -> str:
    """Return the version of a package without its build, empty if it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _meets(found: str, clauses: list[tuple[str, str]]) -> bool:
    """Return whether a version meets all clauses; one that cannot be compared does not."""
    try:
        return all(satisfies(found, operator, bound) for operator, bound in clauses)
    except LockError:
        return False


def _words(problem: OSError) -> str:
    """Return what the system calls a failure."""
    return problem.strerror or type(problem).__name__
