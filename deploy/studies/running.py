"""Runs the experiments of a study, several at a time, each in a process of its own.

    OUT/runs/KEY/               folder of a run, as `simulate.py` keeps it
    OUT/runs/KEY/scores.json    its figures; a run that has those of every arm asked for is not run again

Killed and started again, a study goes on with the rounds that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from deploy.config import Experiment
from deploy.errors import DeployError, EngineError
from deploy.studies.definition import Plan

SCORES_NAME = "scores.json"
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of a finished run.

    Attributes:
        results: arm -> task -> metric -> value.
        epsilon: Largest of a site that was spent, by the PLD accountant; None without privacy.
        seconds: It took.
    """

    results: Mapping[str, Mapping[str, Mapping[str, float]]]
    epsilon: float | None
    seconds: float

    def value(self, arm: str, task: str, metric: str) -> float | None:
        """Return a figure, None where the run has none."""
        return self.results.get(arm, {}).get(task, {}).get(metric)


def run_study(plan: Plan, out: Path, cache: Path, *, jobs: int, note: Note) -> dict[str, Scores]:
    """Return run -> figures, running what is not finished.

    Args:
        plan: Of the study.
        out: Its folder.
        cache: Prepared data.
        jobs: Runs at a time, >= 1.
        note: Told about each finished run.

    Raises:
        DeployError: a run failed; the others that were begun are finished first.
        EngineError: a process was killed.
    """
    missing = [key for key in plan.runs if not _is_finished(plan, key, out / "runs" / key / SCORES_NAME)]
    note(f"{len(plan.runs)} runs, {len(plan.runs) - len(missing)} finished before")
    began = time.perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(_run_one, plan.runs[key].model_dump_json(), out / "runs" / key, cache): key
            for key in missing
        }
        try:
            for done in range(1, len(missing) + 1):
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                future = next(iter(finished))
                key = waiting.pop(future)
                problem = future.result()
                if problem:
                    raise DeployError(f"run {key}: {problem}")
                left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
                note(f"{done} of {len(missing)}: {key}, about {left:.0f} min left")
        except BrokenProcessPool as error:
            raise EngineError("a process of the study has ended: out of memory? try --jobs 1") from error
        finally:
            for future in waiting:
                future.cancel()
    return {key: read_scores(out / "runs" / key / SCORES_NAME) for key in plan.runs}


def _is_finished(plan: Plan, key: str, path: Path) -> bool:
    """Return whether a run has figures of every arm that is asked for: an earlier study may have needed fewer."""
    if not path.exists():
        return False
    found = read_scores(path).results
    return all(cell.arm in found for cell in plan.cells if cell.run == key)


def read_scores(path: Path) -> Scores:
    """Return the figures that a run left."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Scores(results=found["results"], epsilon=found["epsilon"], seconds=found["seconds"])


def _run_one(text: str, out: Path, cache: Path) -> str:
    """Run an experiment and write its figures; return what went wrong, empty if nothing did."""
    import torch

    from privacy.errors import PrivacyError
    from server.errors import ServerError
    from vae.errors import VaeError

    torch.set_num_threads(1)
    try:
        _train_and_score(Experiment.model_validate_json(text), out, cache)
    except (VaeError, PrivacyError, ServerError, DeployError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _train_and_score(experiment: Experiment, out: Path, cache: Path) -> None:
    """Run an experiment in this process and write its figures."""
    from deploy.simulation.assemble import judge_arms, most_spent
    from deploy.simulation.progress import Silent
    from deploy.simulation.run import CONFIG_NAME, Setting, require_same_run, train

    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    require_same_run(experiment, out)
    (out / CONFIG_NAME).write_text(experiment.resolved_yaml(), encoding="utf-8")
    setting = Setting(
        experiment=experiment, out=out, cache=cache, engine="local", workers=1, progress=Silent()
    )
    trained = train(setting)
    if trained.stopped is not None:
        raise trained.stopped
    results: dict[str, dict[str, dict[str, float]]] = {}
    for row in judge_arms(setting, trained).results:
        if row.value is not None:
            results.setdefault(row.arm, {}).setdefault(row.task, {})[row.metric] = row.value
    found = {
        "results": results,
        "epsilon": most_spent(setting, trained),
        "seconds": time.perf_counter() - started,
    }
    partly = out / f".{SCORES_NAME}"
    partly.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partly.replace(out / SCORES_NAME)
