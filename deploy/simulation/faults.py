"""Faults on purpose: a grid around a grid that loses, delays, crashes and falsifies as a plan says.

Every decision is a function of (seed, site, round), so that a run with faults repeats bit for bit and goes on after
a kill as if nothing had been.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.contract import arrays_of, configs_of, encode_weights
from deploy.config import Experiment
from server.clock import Clock

Falsification = Literal["nan", "inf", "huge", "wrong-shape", "renamed", "stale", "corrupt"]


@dataclass(frozen=True, kw_only=True)
class SiteFault:
    """What goes wrong at one site.

    Attributes:
        update: How its update is falsified on the way, if at all.
        crash: The site's process ends while it trains.
        drop: The site is gone: no answer.
        delay_s: Its answer comes this much later [s].
        bandwidth_mbit: Its link [Mbit/s]; the answer comes later by size / bandwidth. None is unlimited.
        rounds: In which rounds; None is all.
    """

    update: Falsification | None = None
    crash: bool = False
    drop: bool = False
    delay_s: float = 0.0
    bandwidth_mbit: float | None = None
    rounds: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """All faults of a run.

    Attributes:
        sites: Site -> fault.
        dropout: Probability that any site is gone in any round, in [0, 1].
        seed: Of the drop-outs.
    """

    sites: Mapping[str, SiteFault]
    dropout: float = 0.0
    seed: int = 0

    def at(self, site: str, round_: int) -> SiteFault:
        """Return what goes wrong at a site in a round."""
        fault = self.sites.get(site, SiteFault())
        if fault.rounds is not None and round_ not in fault.rounds:
            fault = SiteFault()
        draw = hashlib.sha256(f"drop-out/{self.seed}/{site}/{round_}".encode()).digest()
        if int.from_bytes(draw[:8], "big") / 2**64 < self.dropout:
            return SiteFault(drop=True)
        return fault

    def __bool__(self) -> bool:
        return bool(self.sites) or self.dropout > 0


def fault_plan(experiment: Experiment) -> FaultPlan:
    """Return what goes wrong on purpose."""
    return FaultPlan(
        sites={
            site: SiteFault(
                update=fault.update,
                crash=fault.crash,
                drop=fault.drop,
                delay_s=fault.delay_s,
                bandwidth_mbit=fault.bandwidth_mbit,
                rounds=None if fault.rounds == "all" else frozenset(fault.rounds),
            )
            for site, fault in experiment.faults.sites.items()
        },
        dropout=experiment.faults.dropout,
        seed=experiment.seed,
    )


class FaultyGrid(Grid):
    """A grid that does to training messages what the plan says, and leaves the others alone.

    Args:
        inner: The grid that does the work.
        plan: The faults.
        sites: Node id -> site.
        clock: Measures delays; a `VirtualClock` makes them free.
    """

    def __init__(self, inner: Grid, plan: FaultPlan, sites: Mapping[int, str], clock: Clock) -> None:
        self._inner = inner
        self._plan = plan
        self._sites = sites
        self._clock = clock
        self._handled: dict[str, Message | None] = {}
        self._faults: dict[str, SiteFault] = {}
        self._ready_at: dict[str, float] = {}
        self._held: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """Return the run this grid works for."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message (Flower's older way to make one)."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Return all node ids."""
        return list(self._inner.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages on, but for those whose site is gone or crashes."""
        ids = []
        for message in messages:
            fault = self._fault_of(message)
            if fault.drop or fault.crash:
                self._count += 1
                message_id = f"lost-{self._count}"
                message.metadata.__dict__["_message_id"] = message_id
                crashed = Error(ErrorCode.CLIENT_APP_CRASHED, "simulated")
                self._handled[message_id] = Message(crashed, reply_to=message) if fault.crash else None
            else:
                (message_id,) = self._inner.push_messages([message])
                self._faults[message_id] = fault
                self._ready_at[message_id] = self._clock.now() + fault.delay_s
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come by now, falsified where the plan says so."""
        replies = (self._pull(message_id) for message_id in message_ids)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull what is there."""
        return self.pull_messages(self.push_messages(messages))

    def _pull(self, message_id: str) -> Message | None:
        """Return one reply if it has come by now."""
        if message_id in self._handled:
            return self._handled.pop(message_id) if self._handled[message_id] is not None else None
        if self._clock.now() < self._ready_at.get(message_id, 0.0):
            return None
        reply = self._held.pop(message_id, None) or next(iter(self._inner.pull_messages([message_id])), None)
        if reply is None:
            return None
        fault = self._faults[message_id]
        if fault.bandwidth_mbit is not None:
            arrival = self._ready_at[message_id] + 8e-6 * content_bytes(reply) / fault.bandwidth_mbit
            if self._clock.now() < arrival:
                self._held[message_id], self._ready_at[message_id] = reply, arrival
                self._faults[message_id] = SiteFault(update=fault.update)
                return None
        del self._faults[message_id], self._ready_at[message_id]
        if fault.update is not None and reply.has_content():
            falsify(reply, fault.update)
        return reply

    def _fault_of(self, message: Message) -> SiteFault:
        """Return the fault that a message meets."""
        site = self._sites.get(message.metadata.dst_node_id)
        if site is None or message.metadata.message_type != MessageType.TRAIN:
            return SiteFault()
        request = json.loads(str(configs_of(message.content)["request"]["json"]))
        return self._plan.at(site, int(request["round"]))


def content_bytes(message: Message) -> int:
    """Return the size of a message's arrays [bytes]."""
    if not message.has_content():
        return 0
    records = arrays_of(message.content).values()
    return sum(len(array.data) for record in records for array in record.values())


def falsify(reply: Message, how: Falsification) -> None:
    """Change an update as a broken or hostile site might."""
    if "weights" not in arrays_of(reply.content):
        return
    arrays = {name: array.numpy().copy() for name, array in arrays_of(reply.content)["weights"].items()}
    first = next(iter(arrays))
    poison = {"nan": np.nan, "inf": np.inf, "huge": 1e30}
    if how in poison:
        arrays[first].reshape(-1)[:1] = poison[how]
    elif how == "wrong-shape":
        arrays[first] = arrays[first][None]
    elif how == "renamed":
        arrays["../" + first] = arrays.pop(first)
    elif how == "corrupt":
        arrays[first].reshape(-1).view(np.uint8)[:1] ^= 1
    if how == "stale":
        _edit(reply, base_hash="0" * 64)
    reply.content["weights"] = encode_weights(arrays)


def _edit(reply: Message, **fields: Any) -> None:  # noqa: ANN401 - JSON
    """Change fields of the reply's JSON."""
    body = json.loads(str(configs_of(reply.content)["reply"]["json"]))
    reply.content["reply"] = ConfigRecord({"json": json.dumps({**body, **fields})})
