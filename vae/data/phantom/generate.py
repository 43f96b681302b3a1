"""Make a virtual hospital: its BIDS tree on disk, and the cohorts read back from it.

Guarantees: the same spec gives the same bytes on any number of processes, in any order of sites
(tests/unit/vae/test_phantom_generate.py); a person's files appear all at once; a tree that is complete for
the same spec is left alone, one of another spec is never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from vae.data.cohort import SiteData
from vae.data.phantom import bids
from vae.data.phantom.anatomy import image_lattice
from vae.data.phantom.deform import Lattice
from vae.data.phantom.founder import founder_names, load_founder, sources_digest
from vae.data.phantom.person import Person, draw_person, groups
from vae.data.phantom.prepared import load_prepared, prepare
from vae.data.phantom.scan import Scans, scan_person
from vae.data.phantom.scanner import scanner
from vae.data.phantom.spec import PhantomSpec, public_fields, site_names
from vae.data.phantom.version import code_version
from vae.data.phantom.volume import encode_nifti
from vae.errors import DataError

MARKER = ".phantom.json"
_INCOMING = ".incoming"


def cohort_key(spec: PhantomSpec) -> str:
    """Return the SHA-256 that names a cohort: spec, content of the founders, version of this code.

    The number of sites is left out: more sites do not change the ones there are.

    Raises:
        DataError: a founder is missing.
    """
    parts = [public_fields(spec), sources_digest(spec), code_version()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_bids(
    spec: PhantomSpec,
    root: Path,
    *,
    site: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one virtual hospital as a BIDS tree; a complete tree of the same cohort is left as it is.

    Args:
        spec: The cohort.
        root: Folder of the tree; made if missing.
        site: Site, 0-based, below `spec.sites`.
        cache: Folder for prepared founders.
        progress: Called with (people done, people in all) after each person.

    Raises:
        DataError: the folder holds something else, or a founder is missing or unusable.

    Guarantees:
        An interrupted call is taken up where it stopped; two calls at once on one folder wait for each other.
    """
    _check_site(spec, site)
    state = {"cohort": cohort_key(spec), "site": site_names(spec)[site]}
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if _is_complete(root, state):
            return
        (root / MARKER).write_bytes(bids.document({**state, "complete": False}))
        rows = _write_people(spec, root, site, cache, progress)
        for path, content in bids.top_level_files(state["site"], code_version(), rows, spec.channels).items():
            _put(root / path, content)
        shutil.rmtree(root / _INCOMING, ignore_errors=True)
        _put(root / f"{MARKER}.new", bids.document({**state, "complete": True}))
        (root / f"{MARKER}.new").replace(root / MARKER)


def open_phantom(spec: PhantomSpec, *, site: int, cache: Path) -> SiteData:
    """Return one virtual hospital's cohorts, read from its BIDS tree (written now if it is not in the cache).

    Values are in [0, 1]: PET by a public constant, T1w and T2w by a percentile of the scan itself. Shapes are
    [R, C, X, Y] with `slab=1`, [R, C, X, Y, Z] otherwise, axes to the right, front and top.

    Covariates: `age` ((age - 70) / 15) and `sex` (0 female, 1 male).
    Labels of the test cohort: `anomaly` [R] float32, `degree` [R] float32 (percent), `lesion` and `brain`
    [R, *S] float32 masks, `subject_scan` [R] int64 (row of the healthy original; its own for a healthy
    scan), `disease` [R] int64 (0 none, i + 1 for the i-th simulated anomaly), `visit` [R] int64. Train and
    reference have `visit` alone.

    Args:
        spec: The cohort.
        site: Site, 0-based, below `spec.sites`.
        cache: Folder for everything; about 20 MB a site for the default spec. Nothing in it is a person's.

    Raises:
        DataError: as `write_bids`.

    Guarantees:
        The second call reads memory maps alone. Train, reference and test share no patient.
    """
    _check_site(spec, site)
    name = site_names(spec)[site]
    home = cache / "phantom" / cohort_key(spec)[:20] / name
    folder = home / "prepared"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if not (folder / "complete").exists():
            write_bids(spec, home / "bids", site=site, cache=cache)
            prepare(spec, home / "bids", folder)
    return load_prepared(folder, name)


def _check_site(spec: PhantomSpec, site: int) -> None:
    """Refuse a site that the spec does not have."""
    if not 0 <= site < spec.sites:
        raise ValueError(f"site is {site}, the spec has sites 0..{spec.sites - 1}")


def _is_complete(root: Path, state: dict[str, str]) -> bool:
    """Return whether the tree is there already.

    Raises:
        DataError: the folder holds something else.
    """
    marker = root / MARKER
    if not marker.exists():
        if any(root.iterdir()):
            raise DataError(f"{root} is not empty and holds no synthetic cohort; choose another folder")
        return False
    found = json.loads(marker.read_text())
    if {key: found.get(key) for key in state} != state:
        raise DataError(f"{root} holds another synthetic cohort; remove that folder or choose another")
    return bool(found["complete"])


def _write_people(
    spec: PhantomSpec, root: Path, site: int, cache: Path, progress: Callable[[int, int], None] | None
) -> list[dict[str, object]]:
    """Write everybody's folders; return the rows of participants.tsv."""
    founders = founder_names(spec)
    people = [draw_person(spec, site=site, index=i, founders=founders) for i in range(len(groups(spec)))]
    rows: dict[int, dict[str, object]] = {}
    # By founder: a founder is loaded once, not once a person.
    for done, person in enumerate(sorted(people, key=lambda p: (p.founder, p.index)), start=1):
        rows[person.index] = _write_person(spec, root, person, site=site, cache=cache)
        if progress is not None:
            progress(done, len(people))
    return [rows[index] for index in sorted(rows)]


def _write_person(
    spec: PhantomSpec, root: Path, person: Person, *, site: int, cache: Path
) -> dict[str, object]:
    """Write one person's raw and derived folders, unless there; return the row of participants.tsv."""
    row_path = root / bids.DERIVATIVES / person.label / f"{person.label}_participant.json"
    # The raw folder comes last: where it is, everything of this person is.
    if not (root / person.label).exists():
        founder = load_founder(spec, person.founder, cache=cache)
        with torch.inference_mode():
            scans = scan_person(spec, person, founder, site=site)
        files = _person_files(spec, person, scans, site=site)
        incoming = root / _INCOMING
        shutil.rmtree(incoming, ignore_errors=True)
        for path, content in files.items():
            _put(incoming / path, content)
        for part in (bids.DERIVATIVES, "."):
            target = root / part / person.label
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            (incoming / part / person.label).rename(target)
    row: dict[str, object] = json.loads(row_path.read_text())
    return row


def _person_files(spec: PhantomSpec, person: Person, scans: Scans, *, site: int) -> dict[str, bytes]:
    """Return the content of every file of one person, by path below the root."""
    lattice = image_lattice(spec)
    facts = _factors(spec, person, scans, site=site)
    files = {
        f"{person.label}/{person.label}_sessions.tsv": bids.table([_session_row(fact) for fact in facts]),
        f"{bids.DERIVATIVES}/{person.label}/{person.label}_participant.json": bids.document(
            _participant_row(person, facts[0])
        ),
    }
    for visit, fact in enumerate(facts):
        for channel, image in scans.images.items():
            files[bids.image_path(channel, person.label, visit)] = encode_nifti(image[visit], lattice)
        derived = _derived_files(person, scans, visit, lattice)
        derived[bids.factors_path(person.label, visit)] = bids.document(fact)
        files |= {f"{bids.DERIVATIVES}/{path}": content for path, content in derived.items()}
    return files


def _derived_files(person: Person, scans: Scans, visit: int, lattice: Lattice) -> dict[str, bytes]:
    """Return masks and simulated scans of one visit, by path below the derivatives' root."""
    files = {bids.mask_path(person.label, visit, "brain"): encode_nifti(scans.brain[visit], lattice)}
    if scans.disease is not None:
        files[bids.mask_path(person.label, visit, "ad")] = encode_nifti(scans.disease[visit], lattice)
    for anomaly in scans.anomalies:
        desc = f"{anomaly.name}{anomaly.degree:02d}"
        files[bids.mask_path(person.label, visit, desc)] = encode_nifti(anomaly.mask[visit], lattice)
        for channel, image in anomaly.images.items():
            path = bids.image_path(channel, person.label, visit, desc=desc)
            files[path] = encode_nifti(image[visit], lattice)
    return files


def _factors(spec: PhantomSpec, person: Person, scans: Scans, *, site: int) -> list[dict[str, object]]:
    """Return what is true of each visit."""
    course = person.trajectory
    ill = person.group == "diseased"
    return [
        {
            "participant_id": person.label,
            "session_id": f"ses-{visit + 1:02d}",
            "synthetic": True,
            "site": site_names(spec)[site],
            "scanner": scanner(spec.scanner_offset + site).name,
            "founder": person.founder,
            "group": person.group,
            "diagnosis": "AD" if ill else "CN",
            "age": age,
            "sex": "FM"[person.sex],
            "severity": round(course.severity(age), 4),
            "hypometabolism_percent": round(course.severity(age) * person.hypometabolism, 3),
            "hippocampus_per_year": course.alzheimer_hippocampus_per_year
            if ill
            else course.hippocampus_per_year,
            "ventricle_per_year": course.alzheimer_ventricle_per_year if ill else course.ventricle_per_year,
            "cortex_fraction": round(course.cortex_fraction(age), 5),
            "head_scale": [round(float(value), 5) for value in person.scale],
            **volumes,
        }
        for visit, (age, volumes) in enumerate(zip(person.ages, scans.volumes, strict=True))
    ]


_SESSION_COLUMNS = (
    "session_id",
    "age",
    "diagnosis",
    "severity",
    "scanner",
    "hippocampus_ml",
    "ventricle_ml",
    "cortex_ml",
    "intracranial_ml",
)
_PARTICIPANT_COLUMNS = (
    "age",
    "sex",
    "group",
    "diagnosis",
    "site",
    "scanner",
    "founder",
    "hippocampus_ml",
    "ventricle_ml",
)


def _session_row(factors: dict[str, object]) -> dict[str, object]:
    """Return a visit's row of sessions.tsv."""
    return {column: factors[column] for column in _SESSION_COLUMNS}


def _participant_row(person: Person, first: dict[str, object]) -> dict[str, object]:
    """Return a person's row of participants.tsv."""
    row = {"participant_id": person.label} | {column: first[column] for column in _PARTICIPANT_COLUMNS}
    return {**row, "visits": len(person.ages)}


def _put(path: Path, content: bytes) -> None:
    """Write a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
