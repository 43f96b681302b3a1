"""Simulate a whole federation on one machine, and write a report.

    python simulate.py [--config FILE] [--set key=value ...] [--out DIR] [--engine local|ray] [--fresh] [--json]

Run again with the same configuration it goes on where it stopped. Exit codes: 0 done, 1 failed, 2 configuration,
3 refused by privacy, 4 quorum lost, 5 data not ready.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config import load_experiment
from deploy.errors import ConfigError, DeployError, ExitCode
from deploy.folders import cache_folder
from deploy.locking import held

if TYPE_CHECKING:
    from deploy.simulation.progress import Progress
    from deploy.simulation.run import Setting, Trained

DEFAULT_CONFIG = Path(__file__).parent / "deploy" / "configs" / "simulate" / "default.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are told in one line on standard error."""
    options = _parser().parse_args(arguments)
    # Flower reports its use and looks for updates unless told not to; a simulation of hospitals does neither.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        return _run(options)
    except ConfigError as error:
        return _say(error, ExitCode.CONFIGURATION)
    except KeyboardInterrupt:
        again = "the same command without --fresh" if options.fresh else "the same command"
        print(f"stopped: run {again} to go on from the last finished round", file=sys.stderr)
        return ExitCode.FAILED
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        return _say(error, code)


def _run(options: argparse.Namespace) -> int:
    """Train, judge, write the report."""
    started = time.perf_counter()
    overrides = [*options.set, *([f"engine.kind={options.engine}"] if options.engine else [])]
    experiment = load_experiment(options.config, overrides)
    from deploy.simulation.run import CONFIG_NAME, Setting, forget, num_workers, require_same_run, train
    from server.errors import BudgetSpentError

    out: Path = options.out or Path("runs") / f"{experiment.name}-{experiment.hash()[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    with _held(out):
        if options.fresh:
            forget(out)
        require_same_run(experiment, out)
        (out / CONFIG_NAME).write_text(experiment.resolved_yaml())
        setting = Setting(
            experiment=experiment,
            out=out,
            cache=options.cache or cache_folder(),
            engine=experiment.engine.kind,
            workers=num_workers(experiment),
            progress=_progress(options),
        )
        try:
            trained = train(setting)
        finally:
            setting.progress.close()
        _report(setting, trained, as_json=options.json, started=started)
    if trained.stopped is None:
        return ExitCode.DONE
    is_spent = isinstance(trained.stopped, BudgetSpentError)
    return _say(trained.stopped, ExitCode.REFUSED_BY_PRIVACY if is_spent else ExitCode.QUORUM_LOST)


def _report(setting: Setting, trained: Trained, *, as_json: bool, started: float) -> None:
    """Judge the arms, write the model and the report, and print what was asked for."""
    from deploy.simulation.assemble import assemble, subject
    from server.report import summary_text, write
    from vae.weights import save

    report = assemble(setting, trained, wall_s=time.perf_counter() - started)
    arm, out = subject(trained), setting.out
    if arm is not None and trained.federated[arm].round:
        save(out / "model.safetensors", trained.federated[arm].state.final, _card(setting, arm))
    page = write(report, out)
    print((out / "report.json").read_text() if as_json else summary_text(report, page), end="")


def _held(out: Path) -> AbstractContextManager[None]:
    """Hold an output folder: two runs that write there at once would spoil each other's checkpoints."""
    busy = DeployError(f"{out}: another run is writing there; wait for it, or give another --out")
    return held(out / ".lock", busy)


def _card(setting: Setting, arm: str) -> dict[str, str]:
    """Return what the model file says of itself."""
    return {"experiment": setting.experiment.name, "config_hash": setting.experiment.hash(), "arm": arm}


def _code(error: Exception) -> ExitCode | None:
    """Return the exit code of a domain error, None for a defect of ours."""
    from privacy.errors import PrivacyError
    from server.errors import ServerError
    from vae.errors import DataError, ModelSpecError, VaeError

    codes: tuple[tuple[type[Exception], ExitCode], ...] = (
        (ModelSpecError, ExitCode.CONFIGURATION),
        (DataError, ExitCode.DATA_NOT_READY),
        (PrivacyError, ExitCode.REFUSED_BY_PRIVACY),
        (VaeError, ExitCode.FAILED),
        (ServerError, ExitCode.FAILED),
        (DeployError, ExitCode.FAILED),
        (OSError, ExitCode.FAILED),  # a full disk, a folder that may not be written
    )
    return next((code for kind, code in codes if isinstance(error, kind)), None)


def _say(error: Exception, code: ExitCode) -> ExitCode:
    """Print an error for a person and return its code."""
    print(f"{code.name.lower().replace('_', ' ')}: {error}", file=sys.stderr)
    return code


def _progress(options: argparse.Namespace) -> Progress:
    """Return the display that fits the terminal."""
    from deploy.simulation.progress import choose

    return choose(as_json=options.json, stream=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="simulate.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="experiment (YAML); default: %(default)s"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one field, such as federation.rounds=5",
    )
    parser.add_argument("--out", type=Path, help="output folder; default: runs/NAME-HASH")
    parser.add_argument("--cache", type=Path, help="prepared data; default: this user's cache folder")
    parser.add_argument(
        "--engine", choices=("local", "ray"), help="what runs the sites; default: as configured"
    )
    parser.add_argument("--fresh", action="store_true", help="begin again instead of going on")
    parser.add_argument("--json", action="store_true", help="print report.json instead of a summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
