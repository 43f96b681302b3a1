"""Arms without a federation: each site alone, and all patients in one place.

Both train through the same ClientApp and `Site` as the federation, with as many rounds and steps, so that an arm
differs from another by its data alone. Nothing is aggregated: a node's update is added to its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from client.contract import Failure, TrainRequest, Update, Weights, decode_reply, encode_request
from deploy.errors import EngineError
from server.clock import Clock
from server.federation import FederationPlan
from server.rounds import Collector, enrol
from vae.models import signature_of
from vae.weights import hash_weights, load, save

_TRIES = 2


def train_isolated(
    grid: Grid,
    names: Collection[str],
    plan: FederationPlan,
    folder: Path,
    clock: Clock,
    *,
    observe: Callable[[int, Mapping[str, str]], None],
) -> dict[str, Weights]:
    """Return each node's own weights after all rounds; what was finished in an earlier run is read back.

    Args:
        grid: Flower's grid.
        names: Of the nodes.
        plan: Rounds, model and learning; strategy and quorum do not matter here. Everything is shared.
        folder: Where finished weights lie.
        clock: What deadlines are measured with.
        observe: Called with each round and the status of each node.

    Raises:
        EngineError: a node failed; the message names it and its code.
        EnrolmentError: a node did not answer.
    """
    plan = replace(plan, sharing="all")
    finished = _read(names, plan, folder)
    if finished is not None:
        return finished
    nodes = enrol(grid, names, clock, timeout_s=plan.timing.enrol_s)
    weights = {name: plan.start() for name in nodes}
    collector = Collector(grid, clock, plan.timing.deadline_s)
    for round_ in range(1, plan.rounds + 1):
        waiting = dict(nodes)
        for _ in range(_TRIES):
            messages = [_message(plan, name, node, round_, weights[name]) for name, node in waiting.items()]
            replies = collector.collect(messages, {node: name for name, node in nodes.items()})
            for update in _updates(replies, nodes):
                if update.round == round_ and waiting.pop(update.site, None) is not None:
                    own = weights[update.site]
                    weights[update.site] = {name: own[name] + update.delta[name] for name in own}
            if not waiting:
                break
        if waiting:
            raise EngineError(
                f"round {round_}: no answer from {', '.join(waiting)}, asked {_TRIES} times, in an arm without faults: "
                "a process was killed (out of memory?), or took longer than federation.deadline_s"
            )
        observe(round_, dict.fromkeys(nodes, "admitted"))
    for name, own in weights.items():
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{name}.safetensors", own, {"config_hash": plan.config_hash})
    return weights


def _message(plan: FederationPlan, name: str, node: int, round_: int, weights: Weights) -> Message:
    """Return the request to one node, with its own weights."""
    request: TrainRequest = plan.request(name, round_, hash_weights(weights))
    return Message(encode_request(request, weights), node, MessageType.TRAIN, group_id=str(round_))


def _updates(replies: Iterable[Message], nodes: Mapping[str, int]) -> Iterable[Update]:
    """Yield the updates among replies; nothing for a process that ended, whose node is asked again.

    Raises:
        EngineError: a site says that it cannot train.
    """
    sites = {node: name for name, node in nodes.items()}
    for reply in replies:
        site = sites[reply.metadata.src_node_id]
        if reply.has_error():
            continue
        answer = decode_reply(reply.content)
        if isinstance(answer, Failure):
            raise EngineError(f"{site}: {answer.code}; its log says why")
        if isinstance(answer, Update):
            yield answer


def _read(names: Collection[str], plan: FederationPlan, folder: Path) -> dict[str, Weights] | None:
    """Return the weights of a finished arm of the same configuration."""
    found: dict[str, Weights] = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            return None
        found[name], facts = load(path, signature_of(plan.model))
        if facts.get("config_hash") != plan.config_hash:
            return None
    return found
