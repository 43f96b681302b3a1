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
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config import load_experiment
from deploy.errors import ConfigError, DeployError, ExitCode

if TYPE_CHECKING:
    from deploy.simulation.progress import Progress
    from deploy.simulation.run import Setting

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
        print("stopped; run the same command again to go on from the last finished round", file=sys.stderr)
        return ExitCode.FAILED
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        return _say(error, code)


def _run(options: argparse.Namespace) -> int:
    """Train, judge, write the report."""
    started = time.perf_counter()
    experiment = load_experiment(options.config, options.set)
    from deploy.simulation.assemble import assemble, subject
    from deploy.simulation.run import Setting, forget, num_workers, train
    from server.report import summary_text, write
    from vae.weights import save

    out: Path = options.out or Path("runs") / f"{experiment.name}-{experiment.hash()[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        forget(out)
    setting = Setting(
        experiment=experiment,
        out=out,
        cache=options.cache or _default_cache(),
        engine=options.engine or experiment.engine.kind,
        workers=num_workers(experiment),
        progress=_progress(options),
    )
    (out / "config.resolved.yaml").write_text(experiment.resolved_yaml())
    try:
        trained = train(setting)
    finally:
        setting.progress.close()
    report = assemble(setting, trained, wall_s=time.perf_counter() - started)
    arm = subject(trained)
    if arm is not None:
        save(out / "model.safetensors", trained.federated[arm].state.weights, _card(setting, arm))
    write(report, out)
    print((out / "report.json").read_text() if options.json else summary_text(report))
    if not options.json:
        print(f"report: {out / 'report.html'}")
    return ExitCode.DONE


def _card(setting: Setting, arm: str) -> dict[str, str]:
    """Return what the model file says of itself."""
    return {"experiment": setting.experiment.name, "config_hash": setting.experiment.hash(), "arm": arm}


def _code(error: Exception) -> ExitCode | None:
    """Return the exit code of a domain error, None for a defect of ours."""
    from privacy.errors import PrivacyError
    from server.errors import QuorumLostError, ServerError
    from vae.errors import DataError, ModelSpecError, VaeError

    codes: tuple[tuple[type[Exception], ExitCode], ...] = (
        (ModelSpecError, ExitCode.CONFIGURATION),
        (DataError, ExitCode.DATA_NOT_READY),
        (PrivacyError, ExitCode.REFUSED_BY_PRIVACY),
        (QuorumLostError, ExitCode.QUORUM_LOST),
        (VaeError, ExitCode.FAILED),
        (ServerError, ExitCode.FAILED),
        (DeployError, ExitCode.FAILED),
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


def _default_cache() -> Path:
    """Return where prepared data are kept between runs: this user's cache folder."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("federated-vae"))


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
