"""The command line: `python -m deploy VERB`. Heavy packages are imported by the verbs that need them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.agent import add_to as add_agent
from deploy.audit.command import add_to as add_audit
from deploy.doctor.command import add_to as add_doctor
from deploy.errors import ConfigError, ExitCode
from deploy.folders import cache_folder
from deploy.ledger.command import add_to as add_ledger
from deploy.network.command import add_to as add_network
from deploy.provision.command import add_to as add_provision
from deploy.studies.command import add_to as add_study

if TYPE_CHECKING:
    from deploy.config import Experiment
    from deploy.site import SiteConfig
    from vae.data.readiness import Readiness, Source

app = typer.Typer(
    help="Federated VAEs across hospitals: check configurations and data, plan budgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Check configuration files.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="Check a hospital's data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
add_agent(app)
add_audit(app)
add_doctor(app)
add_ledger(app)
add_network(app)
add_provision(app)
add_study(app)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration of the experiment (YAML).")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override: key=value. May be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@config_app.command("check")
def check_config(
    file: Annotated[Path, typer.Argument(help="Configuration of an experiment (YAML).")],
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print every field as it is used.")] = False,
) -> None:
    """Check a configuration file: every problem at once, with its line. Exit code 2 if there is one."""
    experiment = _load(file, overrides)
    if resolved:
        print(experiment.resolved_yaml(), end="")
        return
    sites = len(experiment.site_names)
    print(f"{file}: valid; {experiment.data.kind} data, {sites} sites, {experiment.federation.rounds} rounds")
    print(f"arms: {', '.join(experiment.arms)}; hash {experiment.hash()[:16]}")


@config_app.command("schema")
def print_schema(
    site: Annotated[bool, typer.Option("--site", help="Of a hospital's site.yaml.")] = False,
) -> None:
    """Print the JSON Schema of configuration files (for an editor; shipped in deploy/configs)."""
    from deploy.config import json_schema
    from deploy.site import site_schema

    print(json.dumps(site_schema() if site else json_schema(), indent=2))


@app.command("plan")
def plan_experiment(  # noqa: PLR0917 - a command's options
    config: ConfigFile,
    sites: Annotated[
        list[Path] | None, typer.Option("--site", help="A hospital's site.yaml. May be repeated.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose the private arm's settings by public data alone.")
    ] = False,
    patients: Annotated[
        int | None, typer.Option(min=2, help="With --tune: public number of patients of a site.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="With --tune: rounds in place of the file's.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="With --tune: settings to try; 24.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="With --tune: seeds of the best three; 2.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="With --tune: folder of prepared public records.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --tune: new file for the tuned experiment.")
    ] = None,
) -> None:
    """Say what an experiment costs each site, and why a site would refuse; opens no data. Exit code 3 if one would.

    With --tune: try settings of the private arm on the public cohort, and choose. Opens no site's data either.
    """
    from deploy.tune.command import TuneOptions, tune_experiment

    options = TuneOptions(
        patients=patients, rounds=rounds, trials=trials, seeds=seeds, cache=cache, write=write
    )
    if tune:
        _require_no_sites(sites)
        longer = [] if rounds is None else [f"federation.rounds={rounds}"]
        tune_experiment(_load(config, [*(overrides or ()), *longer]), options, as_json=as_json)
        return
    if options.given():
        print(f"{', '.join(options.given())}: goes with --tune alone", file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION)
    _foresee(config, overrides, sites or (), as_json=as_json)


@app.command("start")
def make_start(
    config: ConfigFile,
    file: Annotated[Path, typer.Argument(help="Where the weights go (safetensors).")],
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared records.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train the weights that a run starts from, on its `public` section alone: no site's data are opened."""
    from deploy.simulation.public import warm_start
    from vae.errors import VaeError
    from vae.weights import hash_weights, save

    experiment = _load(config, overrides)
    shape = experiment.model.input_shape
    if experiment.public is None or shape is None:
        print(
            f"{config}: needs a `public` section, and `model.input_shape` of the sites' records",
            file=sys.stderr,
        )
        raise typer.Exit(ExitCode.CONFIGURATION)
    try:
        spec = experiment.model_spec(shape, experiment.model.num_covariates)
        weights = warm_start(experiment, spec, cache or cache_folder())
    except VaeError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.DATA_NOT_READY) from None
    save(file, weights, {"experiment": experiment.name, "config_hash": experiment.hash()})
    print(f"{file}: weights {hash_weights(weights)}, of public data alone")


@data_app.command("check")
def check_data(  # noqa: PLR0917 - a command's options
    config: ConfigFile,
    site: Annotated[str, typer.Option(help="Name of one site; all sites if left out.")] = "",
    details: Annotated[
        bool, typer.Option("--details", help="Name the refused files. Local: do not share.")
    ] = False,
    as_json: AsJson = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared records.")] = None,
    overrides: Overrides = None,
) -> None:
    """Look at every record of a site's data and say what is usable. Exit code 5 if a site is not ready."""
    experiment = _load(config, overrides)
    sources = _sources(experiment, site)
    folder = cache or cache_folder()
    reports = [_survey(source, name, folder / name) for name, source in sources.items()]
    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        from vae.data.readiness import render

        print("\n".join(render(report, details=details) for report in reports), end="")
    if not all(report.ready for report in reports):
        raise typer.Exit(ExitCode.DATA_NOT_READY)


def _foresee(config: Path, overrides: list[str] | None, sites: Sequence[Path], *, as_json: bool) -> None:
    """Print the outlook of an experiment, or end with its problems."""
    from deploy.plan import foresee
    from deploy.table import render
    from privacy.errors import PrivacyError
    from vae.errors import ModelSpecError

    experiment, files = _load_all(config, overrides, sites)
    try:
        outlook = foresee(experiment, files)
    except (ConfigError, ModelSpecError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION) from None
    except PrivacyError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.REFUSED_BY_PRIVACY) from None
    print(json.dumps(outlook.to_dict(), indent=2) + "\n" if as_json else render(outlook), end="")
    if outlook.is_refused:
        raise typer.Exit(ExitCode.REFUSED_BY_PRIVACY)


def _require_no_sites(sites: Sequence[Path] | None) -> None:
    """End with exit code 2 where a hospital's file is given to a search that looks at none."""
    if sites:
        print(
            "--site: goes without --tune, which looks at no site; plan the tuned file with it",
            file=sys.stderr,
        )
        raise typer.Exit(ExitCode.CONFIGURATION)


def main() -> None:
    """Run the command line; a wrong option is a configuration error, exit code 2."""
    app(prog_name="python -m deploy")


def _load(file: Path, overrides: list[str] | None) -> Experiment:
    """Return the experiment of a file, or end with its problems and exit code 2."""
    from deploy.config import load_experiment

    try:
        return load_experiment(file, overrides or ())
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION) from None


def _load_all(
    file: Path, overrides: list[str] | None, sites: Sequence[Path]
) -> tuple[Experiment, dict[str, SiteConfig]]:
    """Return an experiment and hospitals' files by name, or end with the problems of all of them and exit code 2."""
    from deploy.config import load_experiment
    from deploy.site import load_site

    experiment: Experiment | None = None
    loaded: dict[str, SiteConfig] = {}
    errors: list[ConfigError] = []
    try:
        experiment = load_experiment(file, overrides or ())
    except ConfigError as error:
        errors.append(error)
    for path in sites:
        try:
            loaded[str(path)] = load_site(path)
        except ConfigError as error:
            errors.append(error)
    if errors or experiment is None:
        print("\n".join(str(error) for error in errors), file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION)
    return experiment, loaded


def _sources(experiment: Experiment, site: str) -> dict[str, Source]:
    """Return the source of each chosen site, or end with exit code 2."""
    from deploy.problems import nearest
    from deploy.sources import DicomData, NiftiData, TableData

    data = experiment.data
    if not isinstance(data, NiftiData | DicomData | TableData):
        print(f"{data.kind} data are made or fetched: there is nothing to check", file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION)
    if site and site not in data.site_names:
        near = nearest(site, data.site_names)
        hint = f"; did you mean `{near}`?" if near else f"; sites: {', '.join(data.site_names)}"
        print(f"--site {site}: there is no such site{hint}", file=sys.stderr)
        raise typer.Exit(ExitCode.CONFIGURATION)
    return {name: data.sites[name].to_spec() for name in ([site] if site else data.site_names)}


def _survey(source: Source, name: str, cache: Path) -> Readiness:
    """Return a readiness report, or end with exit code 5 if the source itself cannot be used."""
    from vae.data.readiness import check
    from vae.errors import DataError

    try:
        return check(source, name=name, cache=cache)
    except DataError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(ExitCode.DATA_NOT_READY) from None
