"""Check of the hospital's own data: ready or not, and why, by code."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.doctor.checks import SLOW_S, Visit, check
from deploy.doctor.findings import Said, Severity, error, note, ok, skipped
from deploy.site import DicomHere, NiftiHere, TableHere
from vae.errors import DataError

_MORE = "python -m deploy data check --details, on an experiment with this site, names records and remedies"


@check(
    "data.ready",
    asks="The hospital's data can be trained on; says reasons by code, no name and no count.",
    worst=Severity.ERROR,
    way_out="`python -m deploy data check --details` names records and remedies.",
    at_least_s=SLOW_S,
)
def ready(visit: Visit) -> Iterator[Said]:
    """Look at every record and keep nothing: what was prepared before is used, what was not is not written."""
    from vae.data.quarantine import RefusedFileError
    from vae.data.readiness import check as survey

    data = visit.site.data
    if not isinstance(data, NiftiHere | DicomHere | TableHere):
        yield skipped(f"{data.kind} data are made up")
        return
    try:
        found = survey(
            data.source.to_spec(), name=visit.site.site, cache=visit.cache / visit.site.site, keep=False
        )
    except DataError as problem:  # its text names folders, tables and columns
        code = problem.reason.value if isinstance(problem, RefusedFileError) else type(problem).__name__
        yield error(
            f"the data cannot be opened ({code})",
            "check folder, table and columns under `data.source`, and the rights of this user",
        )
        return
    codes = ", ".join(sorted(found.refused))
    if found.ready:
        yield note(f"ready; some records are put aside ({codes})", _MORE) if codes else ok("ready")
    elif codes:
        yield error(f"not ready: too many records cannot be used ({codes})", _MORE)
    else:
        yield error(
            "not ready: no record was found", "check folder, table, columns and suffixes under `data.source`"
        )
