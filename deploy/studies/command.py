"""`python -m deploy study FILE`: run a study, or what is missing of it, and write its page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import ConfigError, DeployError, ExitCode


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("study")(study_command)


def study_command(  # noqa: PLR0917 - a command's options
    file: Annotated[Path, typer.Argument(help="The study (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Its folder; default: studies/NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Prepared data.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Check every experiment, and run nothing.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the study.")
    ] = None,
) -> None:
    """Run one experiment in many variations and seeds, and write study.html. Goes on where it stopped."""
    from deploy.folders import cache_folder
    from deploy.studies.definition import load_study
    from deploy.studies.page import text_table, write_study
    from deploy.studies.running import run_study
    from deploy.studies.summary import summarise

    try:
        plan = load_study(file, overrides or ())
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION) from None
    if dry:
        print(f"{plan.study.name}: {len(plan.cells)} cells, {len(plan.runs)} runs; every experiment is valid")
        return
    folder = out or Path("studies") / plan.study.name
    try:
        scores = run_study(
            plan, folder, cache or cache_folder(), jobs=jobs, note=lambda text: print(text, file=sys.stderr)
        )
    except DeployError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.FAILED) from None
    summary = summarise(plan, scores)
    page = write_study(summary, folder)
    print(text_table(summary))
    print(f"study: {page}")
