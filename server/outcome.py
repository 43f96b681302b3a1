"""How a deployed run ended, for who submitted it: `outcome.json` and the final weights, beside the checkpoints.

    outcome.json        ended, message, rounds, claims, hash of the weights
    model.safetensors   the shared weights after the last round; only of a run that was done

Both hold what the centre knows anyway: names of sites, codes, what sites claim of privacy, weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.claim import Claim
from server.errors import QuorumLostError, ServerError
from server.strategy import ADMITTED, StrategyState
from vae.data.durable import write_atomically
from vae.weights import hash_weights, save

if TYPE_CHECKING:
    from server.federation import FederationPlan

NAME = "outcome.json"
MODEL = "model.safetensors"


def write_done(folder: Path, plan: FederationPlan, state: StrategyState) -> None:
    """Write the outcome of a run that was done, and its weights.

    Args:
        folder: Of the run.
        plan: The federation.
        state: After the last round.
    """
    weights = hash_weights(state.final)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / MODEL, state.final, {"run": plan.run_id, "config_hash": plan.config_hash})
    _write(folder, {"ended": "done", "run": plan.run_id, "weights": weights, **_told(state)})


def write_failed(folder: Path, plan: FederationPlan, error: ServerError) -> None:
    """Write the outcome of a run that ended before its last round.

    Args:
        folder: Of the run; its checkpoints stay as they are.
        plan: The federation.
        error: Why.
    """
    ended, state = ("quorum-lost", error.state) if isinstance(error, QuorumLostError) else ("failed", None)
    told = {} if state is None else _told(state)
    _write(folder, {"ended": ended, "run": plan.run_id, "message": str(error), **told})


def _told(state: StrategyState) -> dict[str, object]:
    """Return what a state says of rounds and privacy."""
    return {
        "rounds": [
            {
                "round": number,
                "sites": len(status),
                "admitted": sum(code == ADMITTED for code in status.values()),
                "status": dict(status),
            }
            for number, status in enumerate(state.participation, 1)
        ],
        "claims": {site: _sentence(Claim.from_json(text)) for site, text in state.claims.items()},
    }


def _sentence(claim: Claim) -> str:
    """Return what a claim says, in one sentence."""
    if claim.kind == "none":
        return "no differential privacy"
    epsilon = claim.epsilons().pld
    if claim.kind == "seeded":
        return f"a rehearsal, nothing is private (epsilon would be {epsilon:.2f} at delta {claim.delta:g})"
    return f"epsilon {epsilon:.2f} at delta {claim.delta:g} per {claim.unit}"


def _write(folder: Path, outcome: dict[str, object]) -> None:
    """Write an outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAME, json.dumps(outcome, indent=2, sort_keys=True).encode())
