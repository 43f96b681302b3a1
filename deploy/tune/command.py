"""What `python -m deploy plan --tune` does once the experiment is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from deploy.config import Experiment
from deploy.errors import ConfigError, DeployError, ExitCode
from deploy.folders import cache_folder


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """The options that go with `--tune` alone, as given.

    Attributes:
        patients: `--patients`.
        rounds: `--rounds`.
        trials: `--trials`.
        seeds: `--seeds`.
        cache: `--cache`.
        write: `--write`.
    """

    patients: int | None = None
    rounds: int | None = None
    trials: int | None = None
    seeds: int | None = None
    cache: Path | None = None
    write: Path | None = None

    def given(self) -> list[str]:
        """Return the names of the options that were given."""
        return [f"--{name}" for name, value in vars(self).items() if value is not None]


def tune_experiment(experiment: Experiment, options: TuneOptions, *, as_json: bool) -> None:
    """Search, print what was found, and write the file that was asked for; ends with the exit code of an error."""
    from deploy.simulation.run import num_workers
    from deploy.simulation.tuning import Effort, tune
    from deploy.tune.table import render
    from privacy.errors import PrivacyError
    from vae.errors import ModelSpecError, VaeError

    default = Effort()
    effort = Effort(
        trials=default.trials if options.trials is None else options.trials,
        seeds=default.seeds if options.seeds is None else options.seeds,
        patients=options.patients,
    )
    require_new(options.write)
    try:
        tuning = tune(
            experiment,
            effort,
            cache=options.cache or cache_folder(),
            workers=num_workers(experiment),
            note=lambda text: typer.echo(text, err=True),
        )
    except (ConfigError, ModelSpecError) as error:
        raise end(str(error), ExitCode.CONFIGURATION) from None
    except PrivacyError as error:
        raise end(str(error), ExitCode.REFUSED_BY_PRIVACY) from None
    except VaeError as error:
        raise end(str(error), ExitCode.DATA_NOT_READY) from None
    except DeployError as error:
        raise end(str(error), ExitCode.FAILED) from None
    typer.echo(json.dumps(tuning.to_dict(), indent=2) + "\n" if as_json else render(tuning), nl=False)
    if options.write is not None:
        options.write.write_text(tuning.chosen.resolved_yaml())
        typer.echo(f"written: {options.write}", err=True)


def require_new(path: Path | None) -> None:
    """End with exit code 2 if a file cannot be written later: it is there, or its folder is not."""
    if path is None:
        return
    if path.exists():
        raise end(f"--write {path}: is there already; give another name", ExitCode.CONFIGURATION)
    if not path.parent.is_dir():
        raise end(f"--write {path}: its folder is not there; make it first", ExitCode.CONFIGURATION)


def end(text: str, code: ExitCode) -> typer.Exit:
    """Say why, and return the end of the command."""
    typer.echo(text, err=True)
    return typer.Exit(code)
