"""A small federation in this process: requests as the server sends them, and replies as sites would give them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.contract import LearningPlan, TrainRequest, Update, Weights, encode_update
from privacy.accounting import Release
from privacy.claim import Claim
from privacy.plan import PrivacyPlan
from server.admission import Admission
from server.settings import StrategySettings
from server.strategy import FederatedStrategy, make_strategy
from vae.spec import ModelSpec
from vae.weights import hash_weights

RUN_ID = "run-1"
PLAN = PrivacyPlan(
    sampling_probability=0.1,
    steps=5,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    divisor=10.0,
    delta=1e-5,
    grad_engine="vmap",
)
MODEL = ModelSpec(family="vae", input_shape=(4,), latent_size=2, channels=(3,))
SHAPES = {"decoder.weight": (3, 2), "decoder.bias": (3,), "log_scale": ()}

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what Flower's own processes set


def site_names(count: int) -> list[str]:
    """Return site-1 ... site-N."""
    return [f"site-{index}" for index in range(1, count + 1)]


def some_weights(seed: int, *, scale: float = 1.0) -> Weights:
    """Return random float32 weights of the small model, one of them without axes."""
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(scale * generator.standard_normal(shape), np.float32)
        for name, shape in SHAPES.items()
    }


def request_for(site: str, round_: int, base_hash: str, *, proximal_mu: float = 0.0) -> TrainRequest:
    """Return what is asked of every site."""
    return TrainRequest(
        run_id=RUN_ID,
        round=round_,
        base_hash=base_hash,
        model=MODEL,
        sharing="all",
        plan=PLAN,
        learning=LearningPlan(proximal_mu=proximal_mu),
    )


def small_strategy(
    settings: StrategySettings,
    scratch: Path,
    *,
    sites: Iterable[str],
    quorum: int = 1,
    site_weights: Mapping[str, float] | None = None,
) -> FederatedStrategy:
    """Return a strategy of the small model for the given sites, nodes 11, 12, ..."""
    names = list(sites)
    proximal = 0.1 if settings.name == "fedprox" else 0.0
    return make_strategy(
        settings,
        admission=Admission(max_update_norm=settings.max_update_norm),
        enrolled={name: 10 + int(name.split("-")[1]) for name in names},
        site_weights=site_weights or dict.fromkeys(names, 1.0),
        quorum=quorum,
        weights=some_weights(0),
        request_for=lambda *request: request_for(*request, proximal_mu=proximal),
        scratch=scratch,
    )


def ask(strategy: FederatedStrategy, round_: int = 1) -> dict[str, Message]:
    """Return the round's requests by site, with ids as if they had been sent."""
    no_grid = cast(Grid, None)  # the strategy only builds messages
    requests = {}
    for message in strategy.configure_train(round_, ArrayRecord(), ConfigRecord(), no_grid):
        site = f"site-{message.metadata.dst_node_id - 10}"
        message.metadata.__dict__["_message_id"] = f"{round_}/{site}"  # what Flower's grids do when they send
        requests[site] = message
    return requests


def honest_update(site: str, round_: int, base: Weights, delta: Weights) -> Update:
    """Return the update of a site that follows the contract."""
    release = Release(sampling_probability=0.1, noise_multiplier=1.0, steps=5 * round_)
    return Update(
        site=site,
        run_id=RUN_ID,
        round=round_,
        base_hash=hash_weights(base),
        update_hash=hash_weights(delta),
        claim=Claim(site=site, unit="patient", delta=1e-5, kind="dp", releases=(release,)),
        delta=delta,
    )


def honest_reply(request: Message, site: str, round_: int, base: Weights, delta: Weights) -> Message:
    """Return the reply of a site that follows the contract."""
    return Message(encode_update(honest_update(site, round_, base, delta)), reply_to=request)


def forged(update: Update, **changes: object) -> RecordDict:
    """Return the content of an update with some fields changed and its hash made right again."""
    changed = dataclasses.replace(update, **changes)  # type: ignore[arg-type] # tests forge on purpose
    if "update_hash" not in changes:
        changed = dataclasses.replace(changed, update_hash=hash_weights(changed.delta))
    return encode_update(changed)


def with_body(content: RecordDict, edit: Callable[[dict[str, object]], object]) -> RecordDict:
    """Return the content with its JSON edited in place."""
    (key,) = content.config_records
    body = json.loads(str(content.config_records[key]["json"]))
    edit(body)
    content[key] = ConfigRecord({"json": json.dumps(body)})
    return content
