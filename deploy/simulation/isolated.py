"""Arms without a federation: each site alone, and all patients in one place.

Both train through the same ClientApp and `Site` as the federation, with as many rounds and steps, so that an arm
differs from another by its data alone. Nothing is aggregated: a node's update is added to its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from client.contract import Failure, TrainRequest, Update, Weights, decode_reply, encode_request
from deploy.errors import EngineError
from server.clock import Clock
from server.federation import FederationPlan, initial_weights
from server.rounds import Collector
from vae.models import signature_of
from vae.weights import hash_weights, load, save


def train_isolated(
    grid: Grid,
    nodes: Mapping[str, int],
    plan: FederationPlan,
    folder: Path,
    clock: Clock,
    *,
    observe: Callable[[int, Mapping[str, str]], None],
) -> dict[str, Weights]:
    """Return each node's own weights after all rounds; what was finished in an earlier run is read back.

    Args:
        grid: Flower's grid.
        nodes: Node name -> node id.
        plan: Rounds, model and learning; strategy and quorum do not matter here. Everything is shared.
        folder: Where finished weights lie.
        clock: What deadlines are measured with.
        observe: Called with each round and the status of each node.

    Raises:
        EngineError: a node failed; the message names it and its code.
    """
    plan = replace(plan, sharing="all")
    finished = _read(nodes, plan, folder)
    if finished is not None:
        return finished
    weights = {name: initial_weights(plan.model, "all", plan.initial_seed) for name in nodes}
    collector = Collector(grid, clock, plan.timing.deadline_s)
    for round_ in range(1, plan.rounds + 1):
        messages = (_message(plan, name, node, round_, weights[name]) for name, node in nodes.items())
        replies = collector.collect(messages, {node: name for name, node in nodes.items()})
        for update in _updates(replies, nodes):
            own = weights[update.site]
            weights[update.site] = {name: own[name] + update.delta[name] for name in own}
        if collector.missing:
            raise EngineError(
                f"round {round_}: no answer from {', '.join(collector.missing)} in an arm without faults"
            )
        observe(round_, dict.fromkeys(nodes, "admitted"))
    for name, own in weights.items():
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{name}.safetensors", own, {"config_hash": plan.config_hash})
    return weights


def mean_record(values: Iterable[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> Weights:
    """Return the mean of all training records of all sites, the model of the arm `mean`, under the name `mean`."""
    total, count = None, 0
    for array in values:
        part = np.asarray(array, dtype=np.float64).sum(axis=0)
        total = part if total is None else total + part
        count += len(array)
    if total is None:
        raise ValueError("no site, no mean")
    return {"mean": (total / count).astype(np.float32)}


def _message(plan: FederationPlan, name: str, node: int, round_: int, weights: Weights) -> Message:
    """Return the request to one node, with its own weights."""
    request: TrainRequest = plan.request(name, round_, hash_weights(weights))
    return Message(encode_request(request, weights), node, MessageType.TRAIN, group_id=str(round_))


def _updates(replies: Iterable[Message], nodes: Mapping[str, int]) -> Iterable[Update]:
    """Yield the updates among replies.

    Raises:
        EngineError: a reply is anything else.
    """
    sites = {node: name for name, node in nodes.items()}
    for reply in replies:
        site = sites[reply.metadata.src_node_id]
        if reply.has_error():
            raise EngineError(f"{site}: {reply.error.reason}")
        answer = decode_reply(reply.content)
        if isinstance(answer, Failure):
            raise EngineError(f"{site}: {answer.code}; its log says why")
        if isinstance(answer, Update):
            yield answer


def _read(nodes: Mapping[str, int], plan: FederationPlan, folder: Path) -> dict[str, Weights] | None:
    """Return the weights of a finished arm of the same configuration."""
    found: dict[str, Weights] = {}
    for name in nodes:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            return None
        found[name], facts = load(path, signature_of(plan.model))
        if facts.get("config_hash") != plan.config_hash:
            return None
    return found
