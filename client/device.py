"""Where a site computes: on a GPU if torch sees one, else on the CPU.

A choice of the machine, never of a request: it has no effect on what a release costs, and on results by rounding alone.
"""

from __future__ import annotations

from typing import Literal

import torch

from client.contract import FailureCode
from client.errors import SiteError

Device = Literal["auto", "cpu", "cuda"]


def num_gpus(wanted: Device) -> int:
    """Return how many GPUs may be used: those that torch sees, none for `cpu`."""
    return 0 if wanted == "cpu" else torch.cuda.device_count()


def choose_device(wanted: Device) -> torch.device:
    """Return the device of a process: its current GPU, or the CPU.

    Args:
        wanted: `auto` takes a GPU where there is one.

    Raises:
        SiteError: `cuda` is wanted, and torch sees no GPU.
    """
    if num_gpus(wanted):
        return torch.device("cuda", torch.cuda.current_device())
    if wanted == "cuda":
        raise SiteError(
            FailureCode.INTERNAL, "device cuda: torch sees no GPU here; use auto or cpu, or another torch"
        )
    return torch.device("cpu")


def gpu_of_worker(worker: int, gpus: int) -> int | None:
    """Return the GPU of a worker process, both counted from 0: one after another; None where there is no GPU."""
    return worker % gpus if gpus else None
