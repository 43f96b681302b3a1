"""`python -m deploy serve | join | submit | status | logs | stop`: a real federation, from its files.

Nothing says "started" before it has answered. `serve` and `join` stay in the foreground and start again what ends.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.errors import ExitCode
from deploy.ledger.failures import UsageError, reported

if TYPE_CHECKING:
    from deploy.network.flower import RunState
    from deploy.network.programs import Program

READY_S = 90.0
"""How long a program may take to answer; importing torch takes most of it."""

CentreFile = Annotated[Path, typer.Option("--centre", help="The coordinating centre's centre.yaml.")]
EitherFile = Annotated[Path | None, typer.Option("--site", help="At a hospital: its site.yaml.")]
CentreOrNone = Annotated[Path | None, typer.Option("--centre", help="At the centre: its centre.yaml.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to a command line."""
    for name, verb in (
        ("init", init), ("serve", serve), ("join", join), ("submit", submit), ("status", status), ("logs", logs),
        ("stop", stop),
    ):  # fmt: skip
        app.command(name)(reported()(verb))


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    config: Annotated[Path, typer.Option("--config", help="The experiment (YAML).")],
    seeded: Annotated[
        bool,
        typer.Option(
            "--seeded", help="All draws from the experiment's seed, as simulated; nothing is private."
        ),
    ] = False,
    front: Annotated[bool, typer.Option("--front/--no-front", help="nginx with client certificates.")] = True,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="First of the ports on 127.0.0.1.")] = 18100,
) -> None:
    """Lay out an experiment as a federation on this machine: a rehearsal with every key, file and ledger."""
    from deploy.config import load_experiment
    from deploy.network.project import begin_ledgers, make_project

    project = make_project(load_experiment(config), folder, seeded=seeded, front=front, port=port)
    begin_ledgers(project)
    typer.echo(f"{folder}: laid out; in a terminal each:")
    typer.echo(f"    python -m deploy serve --centre {project.centre}")
    for file in project.sites.values():
        typer.echo(f"    python -m deploy join --site {file}")
    option = " --seeded" if seeded else ""
    typer.echo(f"    python -m deploy submit{option} --centre {project.centre} {project.experiment}")


def serve(centre: CentreFile) -> None:
    """Run the coordinating centre until it is told to stop (SIGTERM, Ctrl-C)."""
    from deploy.network.centre import centre_files, centre_programs, load_centre
    from deploy.network.flower import CommandLine

    config = load_centre(centre)
    keys = _public_keys(config.sites)
    files = centre_files(config)

    def enrol() -> str:
        nodes = CommandLine(files).register(keys)
        where = f"port {config.front.port}" if config.front is not None else "this machine alone"
        return f"serving {len(nodes)} sites at {where}"

    _run(centre_programs(config, files), files.folder, enrol)


def join(site: Annotated[Path, typer.Option("--site", help="The hospital's site.yaml.")]) -> None:
    """Run a hospital's agent and SuperNode until they are told to stop (SIGTERM, Ctrl-C)."""
    from deploy.network.hospital import hospital_programs, sections_of
    from deploy.site import load_site

    config = load_site(site)
    node, connection = sections_of(config, site)
    said = f"{config.site} has joined {connection.server}"
    _run(hospital_programs(config, site), Path(node.folder), lambda: said)


def submit(  # noqa: PLR0917 - a command's options
    centre: CentreFile,
    experiment: Annotated[Path, typer.Argument(help="The experiment (YAML).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; default: by name, below the centre's.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights of `python -m deploy start`.")] = None,
    seeded: Annotated[
        bool, typer.Option("--seeded", help="A rehearsal with made-up data: all noise can be drawn again.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end of the run.")] = True,
) -> None:
    """Start a run at the centre and wait for its end. Exit code 1 if the run fails, 4 if too few sites answered."""
    from deploy.config import load_experiment
    from deploy.network.bundle import bundle_folder
    from deploy.network.centre import centre_files, load_centre
    from deploy.network.flower import CommandLine
    from server.outcome import NAME

    config = load_centre(centre)
    plan = load_experiment(experiment)
    strangers = sorted(set(plan.site_names) - set(config.sites))
    if strangers:
        raise UsageError(
            f"{experiment}: {', '.join(strangers)} {'is' if len(strangers) == 1 else 'are'} not among `sites` of "
            f"{centre}; enrol them, or take them off"
        )
    files = centre_files(config)
    flower = CommandLine(files)
    flower.runs()  # where nobody answers, nothing is made and no earlier outcome forgotten
    folder = (out or files.runs / plan.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "experiment": str(experiment.absolute()),
        "output": str(folder),
        "start": "" if start is None else str(start.absolute()),
        "randomness": "seeded" if seeded else "os",
    }
    outcome = folder / NAME
    outcome.unlink(
        missing_ok=True
    )  # of an earlier run: one that is killed leaves none, and must not seem to have
    run_id = flower.start(bundle_folder(), settings)
    typer.echo(f"run {run_id}: submitted; results: {folder}")
    if not wait:
        return
    ended = flower.wait(
        run_id, lambda state: typer.echo(f"run {run_id}: {state.status}", err=True), outcome.exists
    )
    raise typer.Exit(_conclude(ended, folder, centre))


def status(
    centre: CentreOrNone = None,
    site: EitherFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Ask every program whether it answers, and at the centre which sites and runs there are. Exit code 1 if not."""
    from deploy.network.supervise import leftovers

    folder, make_programs = _post(centre, site)
    programs, alive = make_programs(), leftovers(folder)
    answers = {
        program.name: program.name in alive and (program.ready is None or program.ready())
        for program in programs
    }
    found: dict[str, object] = {"programs": answers}
    if centre is not None and answers["superlink"]:
        found |= _federation(centre)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    if not all(answers.values()):
        raise typer.Exit(ExitCode.FAILED)


def logs(
    name: Annotated[str, typer.Argument(help="A program, or at the centre the id of a run.")],
    centre: CentreOrNone = None,
    site: EitherFile = None,
) -> None:
    """Print what a program, or a run, has logged. Local: do not share a hospital's."""
    from deploy.network.centre import centre_files, load_centre
    from deploy.network.flower import CommandLine
    from deploy.network.supervise import log_of

    if name.isdigit() and centre is not None:
        typer.echo(CommandLine(centre_files(load_centre(centre))).log(name))
        return
    folder, make_programs = _post(centre, site)
    names = [program.name for program in make_programs()]
    if name not in names:
        raise UsageError(f"{name}: there is no such program; give one of {', '.join(names)}")
    log = log_of(folder, name)
    typer.echo(log.read_text(errors="replace") if log.is_file() else f"{log}: nothing yet")


def stop(
    centre: CentreOrNone = None,
    site: EitherFile = None,
    run: Annotated[str, typer.Option(help="At the centre: stop this run alone.")] = "",
) -> None:
    """Stop what `serve` or `join` runs, or one run; what sites have spent on its round stays spent."""
    from deploy.network.centre import centre_files, load_centre
    from deploy.network.flower import CommandLine
    from deploy.network.supervise import stop_all

    if run:
        if centre is None:
            raise UsageError("--run: goes with --centre")
        CommandLine(centre_files(load_centre(centre))).stop(run)
        typer.echo(f"run {run}: stopped")
        return
    folder, _ = _post(centre, site)
    stopped = stop_all(folder)
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _run(programs: Sequence[Program], folder: Path, begun: Callable[[], str]) -> None:
    """Run programs until a signal comes; say what `begun` returns once all of them answer."""
    from deploy.network.supervise import Supervisor

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    supervisor = Supervisor(programs, folder, lambda line: typer.echo(line, err=True))
    with supervisor.running(READY_S, ended):
        typer.echo(begun())
        supervisor.watch(ended)
        typer.echo("stopping", err=True)


def _post(centre: Path | None, site: Path | None) -> tuple[Path, Callable[[], list[Program]]]:
    """Return the folder of the file that was given, and what makes its programs; that writes their files.

    Raises:
        UsageError: none or two were given.
    """
    from deploy.network.centre import centre_files, centre_programs, load_centre
    from deploy.network.hospital import hospital_programs, sections_of
    from deploy.site import load_site

    if centre is not None and site is None:
        config = load_centre(centre)
        return Path(config.folder), lambda: centre_programs(config, centre_files(config))
    if site is not None and centre is None:
        here = load_site(site)
        return Path(sections_of(here, site)[0].folder), lambda: hospital_programs(here, site)
    raise UsageError("give either --centre centre.yaml or --site site.yaml")


def _public_keys(sites: Mapping[str, str]) -> dict[str, Path]:
    """Return the files of the sites' keys.

    Raises:
        UsageError: one is not there, or holds something else.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    keys = {site: Path(path) for site, path in sites.items()}
    for site, file in keys.items():
        try:
            good = isinstance(load_ssh_public_key(file.read_bytes()), EllipticCurvePublicKey)
        except (OSError, ValueError):
            good = False
        if not good:
            raise UsageError(
                f"sites.{site}: {file} is no ECDSA public key of OpenSSH; take the `supernode.pub` that "
                "`python -m deploy provision sign` has put below sites/"
            )
    return keys


def _federation(centre: Path) -> dict[str, object]:
    """Return the sites and runs of a centre that answers."""
    from deploy.network.centre import centre_files, load_centre
    from deploy.network.flower import CommandLine

    config = load_centre(centre)
    flower = CommandLine(centre_files(config))
    states, nodes = flower.nodes(), flower.registered()
    return {
        "sites": {site: states.get(nodes.get(site, ""), "unknown") for site in config.sites},
        "runs": {run.run_id: run.status for run in flower.runs()},
    }


def _print(found: Mapping[str, object]) -> None:
    """Print what `status` has found."""
    for kind, entries in found.items():
        if isinstance(entries, dict):
            for name, state in entries.items():
                shown = {True: "answers", False: "does not answer"}.get(state, state)
                typer.echo(f"{kind[:-1]:8} {name}: {shown}")


def _conclude(run: RunState, folder: Path, centre: Path) -> ExitCode:
    """Print how a run ended, and return the exit code that stands for it."""
    from server.outcome import MODEL, NAME

    outcome = folder / NAME
    told = json.loads(outcome.read_text()) if outcome.is_file() else {}
    for line in told.get("rounds", []):
        typer.echo(f"round {line['round']}: {line['admitted']} of {line['sites']} sites")
    for site, text in sorted(told.get("claims", {}).items()):
        typer.echo(f"{site}: {text}")
    if run.status == "finished:completed" and told.get("ended") == "done":
        typer.echo(f"model: {folder / MODEL}, SHA-256 of its weights {told['weights']}")
        return ExitCode.DONE
    why = told.get("message") or run.details
    way = f"see `python -m deploy logs {run.run_id} --centre {centre}`"
    typer.echo(f"run {run.run_id}: {run.status}: {why}; {way}", err=True)
    return ExitCode.QUORUM_LOST if told.get("ended") == "quorum-lost" else ExitCode.FAILED
