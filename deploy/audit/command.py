"""The verb `audit` of `python -m deploy`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.errors import ConfigError, DeployError, ExitCode

if TYPE_CHECKING:
    from deploy.audit.document import AuditReport
    from deploy.site import SiteConfig
    from privacy.heads import Head
    from privacy.signing import SigningKey

SiteFile = Annotated[Path | None, typer.Option("--site", help="A hospital's site.yaml: audit its ledger.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Output folder of simulate.py: audit the run.")]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Where to write; default: the run's folder, or audit-SITE-DATE.")
]
KeyFile = Annotated[
    Path | None, typer.Option("--key", help="Private key (PEM) that signs; default: the site's own.")
]
HeadFiles = Annotated[
    list[Path] | None,
    typer.Option("--head", help="JSON of ledger heads that somebody else kept. May be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print audit.json instead of a summary.")]
NoAttack = Annotated[bool, typer.Option("--no-empirical", help="Make no attack; the report says so.")]


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command line."""
    app.command("audit")(audit)


def audit(  # noqa: PLR0917 - a command's options
    site: SiteFile = None,
    run: RunFolder = None,
    out: OutFolder = None,
    key: KeyFile = None,
    heads: HeadFiles = None,
    as_json: AsJson = False,
    no_empirical: NoAttack = False,
) -> None:
    """Check a ledger or a run, and write a report for people. Exit code 3 if something is violated."""
    if (site is None) == (run is None):
        raise _end("audit: give either --site FILE or --run DIR", ExitCode.CONFIGURATION)
    if heads and site is None:
        raise _end("audit: --head goes with --site; a run holds the heads itself", ExitCode.CONFIGURATION)
    try:
        report, folder, signer = (
            _of_site(site, heads or (), key, empirical=not no_empirical)
            if site is not None
            else _of_run(run or Path(), key, empirical=not no_empirical)
        )
        _tell(report, out or folder, signer, as_json=as_json)
    except ConfigError as error:
        raise _end(str(error), ExitCode.CONFIGURATION) from None
    except (DeployError, OSError) as error:
        raise _end(f"audit: {error}", ExitCode.FAILED) from None
    if report.status == "violated":
        raise typer.Exit(ExitCode.REFUSED_BY_PRIVACY)


def _of_site(
    file: Path, head_files: Sequence[Path], key: Path | None, *, empirical: bool
) -> tuple[AuditReport, Path, SigningKey | None]:
    """Return a hospital's audit, where to write it, and who signs."""
    from deploy.audit.collect import audit_site
    from deploy.site import load_site

    config = load_site(file)
    signer = _given_key(key) or _own_key(config)
    heads = [head for path in head_files for head in _read_heads(path)]
    report = audit_site(config, source=file.name, heads=heads, empirical=empirical)
    return report, Path(f"audit-{config.site}-{report.subject.created[:10]}"), signer


def _of_run(
    folder: Path, key: Path | None, *, empirical: bool
) -> tuple[AuditReport, Path, SigningKey | None]:
    """Return a run's audit, where to write it, and who signs."""
    from deploy.audit.runs import audit_run

    return audit_run(folder, empirical=empirical), folder, _given_key(key)


def _tell(report: AuditReport, folder: Path, signer: SigningKey | None, *, as_json: bool) -> None:
    """Write the files and print what was asked for; what is violated is named on standard error."""
    from deploy.audit.verdict import headline
    from deploy.audit.write import DOCUMENT, sign_off, write

    page = write(report, folder, signer)
    if as_json:
        typer.echo((folder / DOCUMENT).read_text(encoding="utf-8"), nl=False)
    else:
        final = sign_off(report, signer)
        first = headline(final)
        said = [f"{report.subject.name}: {first.text}", *first.details, *_lines(final), f"Report: {page}"]
        typer.echo("\n".join(said))
    for check in report.checks:
        if check.status == "violated":
            typer.echo(f"violated, {check.name}: {check.text}", err=True)


def _lines(report: AuditReport) -> list[str]:
    """Return the findings as lines for a terminal."""
    from deploy.audit.verdict import findings

    marks = {"good": "+", "plain": "-", "caution": "!", "bad": "x"}
    return [f"{marks[one.tone]} {one.text}" for one in findings(report)]


def _given_key(path: Path | None) -> SigningKey | None:
    """Return the key of an option, None if it was not given.

    Raises:
        DeployError: it cannot be used.
    """
    from privacy.errors import SigningError
    from privacy.signing import load_key

    try:
        return None if path is None else load_key(path)
    except SigningError as error:
        raise DeployError(f"--key {error}") from error


def _own_key(config: SiteConfig) -> SigningKey | None:
    """Return the site's own key, None if whoever audits cannot read it: the report then says that nobody signed."""
    from privacy.errors import SigningError
    from privacy.signing import load_key

    try:
        return load_key(Path(config.key))
    except SigningError as error:
        typer.echo(f"not signed: {error}", err=True)
        return None


def _read_heads(path: Path) -> list[Head]:
    """Return the heads of a file: one, or a list of them.

    Raises:
        DeployError: it holds something else.
    """
    from privacy.errors import PlanError
    from privacy.fields import parse_json
    from privacy.heads import Head

    try:
        found = parse_json(path.read_bytes(), subject="head")
        return [Head.from_dict(item) for item in (found if isinstance(found, list) else [found])]
    except (PlanError, json.JSONDecodeError) as error:
        raise DeployError(f"--head {path}: {error}") from error


def _end(problem: str, code: ExitCode) -> typer.Exit:
    """Print a problem on standard error and return what ends the command."""
    typer.echo(problem, err=True)
    return typer.Exit(code)
