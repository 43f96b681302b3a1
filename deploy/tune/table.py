"""A tuning as text for a terminal."""

from __future__ import annotations

import io
import math
import shlex

from rich.console import Console
from rich.table import Table

from deploy.tune.candidates import Candidate
from deploy.tune.choice import Trial, Tuning

WIDTH = 130
_COLUMNS = (
    "error", "over seeds", "q", "steps", "clip", "rate", "optimiser", "trains", "average", "sigma", "epsilon",
)  # fmt: skip


def render(tuning: Tuning) -> str:
    """Return a tuning as lines for a person: yardsticks, trials, the choice in two forms, what to know of it."""
    privacy, rounds = tuning.experiment.privacy, tuning.experiment.federation.rounds
    target = "" if privacy is None else f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, "
    kept, sites = tuning.kept_gain, len(tuning.patients.per_site)
    lines = [
        f"{tuning.experiment.name}: {target}{rounds} rounds, {sites} sites; no site's data were opened",
        "",
        "reconstruction error on public patients that were held back",
        f"  public start alone                              {_error(tuning.start)}",
        f"  without privacy, by the section `training`      {_error(tuning.plain)}",
        f"  without privacy, at the choice's steps and rate {_error(tuning.noiseless)}",
        f"  with privacy, the choice                        {_error(tuning.winner.score)}"
        + ("" if kept is None else f"   noise leaves {100 * kept:.0f} % of the gain"),
        "",
        *_table(tuning.trials),
        "",
        "choice, as a part of the configuration:",
        *(f"  {line}" for line in tuning.fragment().splitlines()),
        "or: python simulate.py --config FILE "
        + " ".join(f"--set {shlex.quote(word)}" for word in tuning.overrides()),
        "",
        *tuning.notes(),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def describe(one: Candidate) -> str:
    """Return settings in a few words, for a line of progress."""
    return (
        f"q {one.sampling_probability:g}, {one.local_steps} steps, clip {one.max_grad_norm:g}, {one.optimiser} "
        f"{one.learning_rate:g}, {one.trainable}"
    )


def _table(trials: tuple[Trial, ...]) -> list[str]:
    """Return the lines of the table of trials."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="left", no_wrap=True)
    for trial in trials:
        table.add_row(*_row(trial))
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False).print(table)
    return stream.getvalue().splitlines()


def _row(trial: Trial) -> tuple[str, ...]:
    """Return the cells of a trial."""
    one, seeds = trial.candidate, trial.seeds
    over = f"{_error(min(seeds))} to {_error(max(seeds))}" if len(seeds) > 1 else "1 seed"
    return (
        _error(trial.score),
        over,
        f"{one.sampling_probability:g}",
        str(one.local_steps),
        f"{one.max_grad_norm:g}",
        f"{one.learning_rate:g}",
        one.optimiser,
        one.trainable,
        "-" if trial.weight_average is None else f"{trial.weight_average:g}",
        f"{trial.noise_multiplier:.3g}",
        f"{trial.epsilon:.3f}",
    )


def _error(value: float) -> str:
    """Return an error, or that training failed."""
    return f"{value:.3e}" if math.isfinite(value) else "failed"
