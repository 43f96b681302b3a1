"""Engines: what runs the virtual sites while `work` plays the server. The result does not depend on the choice.

- `local`: `LocalGrid` over this process (one worker) or worker processes.
- `ray`: Flower's own simulation engine, for many GPUs or machines; needs the dependency group `ray`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from deploy.errors import EngineError
from deploy.simulation.grid import SERVER_NODE, Executor, InProcess, LocalGrid, make_contexts
from deploy.simulation.sites import VirtualSites
from deploy.simulation.workers import Workers
from server.app import make_app

Result = TypeVar("Result")
Work = Callable[[Grid], Result]


def run_local(
    sites: VirtualSites, names: Sequence[str], work: Work[Result], *, workers: int, gpus: int = 0
) -> Result:
    """Return what `work` returns, on a local grid of the named sites.

    Args:
        sites: Connects to the virtual sites.
        names: Node names, in order.
        work: Plays the server.
        workers: Processes; 1 runs everything in this process.
        gpus: GPUs to share out among the processes.
    """
    import torch

    nodes = {name: node for node, name in enumerate(names, start=2)}
    executor: Executor
    if workers == 1:
        executor = InProcess(sites.app(), make_contexts(nodes))
    else:
        executor = Workers(sites.app, nodes, num_workers=workers, gpus=gpus)
    server, results = _server(work)
    context = Context(run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every worker: sums split over threads differ in their last bits
    try:
        server(LocalGrid(names, executor), context)
    finally:
        torch.set_num_threads(threads)
        executor.close()
    return results()


def run_ray(sites: VirtualSites, work: Work[Result], *, gpus_per_site: float = 0.0) -> Result:
    """Return what `work` returns, on Flower's simulation engine.

    Args:
        sites: Connects to the virtual sites; one Ray node for each.
        work: Plays the server; it runs in a thread of this process.
        gpus_per_site: Share of a GPU that a site needs.

    Raises:
        EngineError: Ray is not installed, or the engine ended without a result.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "engine ray: Ray is not installed; install the dependency group ray, or use local"
        ) from error
    from flwr.simulation import run_simulation

    server, results = _server(work)
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": gpus_per_site},
        "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False, "log_to_driver": False},
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # run_simulation is deprecated in flwr 1.41, without a successor in a process
        run_simulation(server, sites.app(), num_supernodes=len(sites.sites), backend_config=backend)
    return results()


def _server(work: Work[Result]) -> tuple[ServerApp, Callable[[], Result]]:
    """Return a ServerApp that does `work`, and what tells its result: Flower hands nothing back."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def keep(grid: Grid) -> None:
        try:
            results.append(work(grid))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    def result() -> Result:
        if errors:
            raise errors[0]
        if not results:
            raise EngineError("the engine ended without a result; its log above says why")
        return results[0]

    return make_app(keep), result
