"""`python -m deploy doctor --site site.yaml`; heavy packages are imported inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import ConfigError, ExitCode


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("doctor")(doctor)


def doctor(
    site: Annotated[Path, typer.Option("--site", help="The hospital's site.yaml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="ID", help="Only this check (net.dns), or group (net). May be repeated."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for each check; slow ones get 60.")
    ] = 10.0,
) -> None:
    """Say whether this hospital is ready to join, and how to mend what is not. Exit code 1 for an error.

    Changes nothing.
    """
    from deploy.doctor.checks import Visit
    from deploy.doctor.registry import choose
    from deploy.doctor.report import has_error, render, to_dict
    from deploy.doctor.running import examine
    from deploy.site import load_site

    try:
        checks = choose(only or ())
        visit = Visit(site=load_site(site), file=site, timeout_s=timeout)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.CONFIGURATION) from None
    findings = examine(visit, checks)
    _print(json.dumps(to_dict(visit, findings), indent=2) + "\n" if as_json else render(visit, findings))
    if has_error(findings):
        raise typer.Exit(ExitCode.FAILED)


def _print(text: str) -> None:
    """Print text; a letter that the terminal does not know must not end the command."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding), nl=False)
