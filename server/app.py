"""The Flower ServerApp: plays the coordinating centre on any Flower grid.

`make_app` wraps what a server does into a ServerApp; the simulator uses it with the arms of an experiment, on every
engine. `app` at the bottom is what Flower's SuperLink loads: it reads one experiment, federates the enrolled sites
and saves every round. It opens no data, and knows a site by the name under which its key was registered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from privacy.plan import RandomnessKind
from server.clock import WallClock
from server.errors import ServerError
from server.federation import federate
from server.outcome import write_done, write_failed
from vae.weights import load


def make_app(work: Callable[[Grid], None]) -> ServerApp:
    """Return a ServerApp that does `work` on the grid it is given."""
    made = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        """Do the work; the context holds nothing that it needs."""
        del context
        work(grid)

    made.main()(main)
    return made


def run_deployed(grid: Grid, context: Context) -> None:
    """Federate the sites of the experiment that the run configuration names.

    Run configuration:
        experiment: Path of the experiment's YAML file at the centre. Its `model.input_shape` must be given, since the
            server opens no data.
        output: Folder for checkpoints; the same folder goes on where a run stopped.
        start: File of weights that `python -m deploy start` made from the experiment's `public` section; required with
            one, since the server trains nothing.
        randomness: `os`, or `seeded` for a rehearsal, where nothing is private and every draw can be repeated.

    Raises:
        ServerError: a path is missing, or the federation cannot be run.
        WeightsError: the start is of another model.
    """
    from deploy.config import load_experiment
    from deploy.plans import federation_plan

    paths = {name: str(context.run_config.get(name) or "") for name in ("experiment", "output")}
    missing = [name for name, value in paths.items() if not value]
    if missing:
        raise ServerError(
            f"run configuration: {', '.join(missing)} is missing; give --run-config 'NAME=\"PATH\"'"
        )
    asked = str(context.run_config.get("randomness") or "os")
    if asked not in {"os", "seeded"}:
        raise ServerError(f"run configuration: randomness = {asked}; give os, or seeded for a rehearsal")
    randomness: RandomnessKind = "seeded" if asked == "seeded" else "os"
    experiment = load_experiment(paths["experiment"])
    if experiment.model.input_shape is None:
        raise ServerError(
            "model.input_shape is missing: the server opens no data, so the experiment must state it"
        )
    spec = experiment.model_spec(experiment.model.input_shape, experiment.model.num_covariates)
    private = experiment.privacy is not None
    plan = federation_plan(experiment, spec, private=private, randomness=randomness)
    start = str(context.run_config.get("start") or "")
    if (experiment.public is not None) != bool(start):
        raise ServerError(
            "run configuration: start is the file of public weights, and goes with a `public` section: make it with "
            "`python -m deploy start --config EXPERIMENT FILE`, or remove the section"
        )
    if start:
        from vae.models import signature_of

        plan = replace(plan, initial=load(Path(start), signature_of(spec))[0])
    folder = Path(paths["output"])
    try:
        ended = federate(grid, plan, folder, WallClock(), names=names_of)
    except ServerError as error:
        write_failed(folder, plan, error)
        raise
    write_done(folder, plan, ended.state)


def names_of(grid: Grid) -> dict[int, str]:
    """Return node id -> the name under which the SuperLink knows the key that the node has proved to hold."""
    return {node.node_id: node.name for node in grid.get_nodes() if node.name}


app = ServerApp()
app.main()(run_deployed)
