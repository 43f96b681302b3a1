"""The average of the global weights over rounds: what a run hands out in place of its last, noisiest point.

Rounds go on from the weights themselves; the average is only watched. It is a function of released weights and of a
public constant, so it costs no privacy. All arithmetic is element-wise float32 in a fixed order: a resumed run
continues bit for bit.
"""

from __future__ import annotations

import numpy as np

from server.aggregate import Weights, shapes_of
from server.errors import CheckpointError, StrategyError


def require_decay(decay: float | None) -> None:
    """Check the decay of an average; None is for none.

    Raises:
        StrategyError: it is not in (0, 1).
    """
    if decay is not None and not 0 < decay < 1:
        raise StrategyError(f"weight_average is {decay}; it must be in (0, 1), or null for none")


def averaged(average: Weights, weights: Weights, *, decay: float, applied: int) -> Weights:
    """Return the exponential moving average after one more round, corrected for its start.

        a_t = a_{t-1} + (1 - d) / (1 - d^t) (w_t - a_{t-1})

    which is (1 - d) / (1 - d^t) sum_s d^(t - s) w_s: weights of rounds that add up to 1 from the first round on.

    Args:
        average: a_{t-1}; empty before the first round.
        weights: w_t.
        decay: d in (0, 1).
        applied: t >= 1, rounds that changed the weights, this one included.

    Raises:
        ValueError: names or shapes differ, or there is no average of earlier rounds.

    References:
        Kingma & Ba 2015, arXiv:1412.6980, section 3 (correction); De et al. 2022, arXiv:2204.13650 (averages of
        weights under differential privacy).
    """
    if applied == 1:
        return {name: np.array(weights[name], np.float32) for name in sorted(weights)}
    if shapes_of(average) != shapes_of(weights):
        raise ValueError("the average does not have the names and shapes of the weights")
    share = np.float32((1 - decay) / (1 - decay**applied))
    return {
        name: np.asarray(average[name] + share * (weights[name] - average[name]), np.float32)
        for name in sorted(weights)
    }


def restored(average: Weights, weights: Weights, *, decay: float | None, applied: int) -> Weights:
    """Return the average that a checkpoint kept, if it is one of these weights and this setting.

    Raises:
        CheckpointError: it is not.
    """
    if decay is None or applied == 0:
        if average:
            raise CheckpointError("average: the checkpoint has one, and the run keeps none; use --fresh")
        return {}
    if shapes_of(average) != shapes_of(weights):
        raise CheckpointError("average: the checkpoint's is not one of this model's weights; use --fresh")
    return {name: average[name] for name in sorted(average)}
