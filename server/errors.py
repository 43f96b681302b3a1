"""Errors of `server`.

    ServerError
    ├── EnrolmentError     sites did not turn up before the first round
    ├── StrategyError      settings of a strategy are invalid, or would do nothing
    ├── AggregationError   the rule cannot be applied to these updates; the round is not applied
    ├── QuorumLostError    too few updates were admitted; the round is not applied
    │   └── BudgetSpentError   and too few sites have budget left for another round: the run is over
    ├── CheckpointError    a checkpoint cannot be written, read or resumed from
    └── RejectedError      one reply is refused (`server.admission`); the round goes on without it

Our own code called wrongly raises `ValueError` or `RuntimeError`, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.strategy import StrategyState


class ServerError(Exception):
    """Base of every domain error of this package; the message names the thing, the rule and the way out."""


class EnrolmentError(ServerError):
    """Sites did not turn up before the first round; the message names them."""


class StrategyError(ServerError):
    """Settings of a strategy are invalid, or would do nothing."""


class AggregationError(ServerError):
    """The rule cannot be applied to these updates; the global model stays as it was."""


class QuorumLostError(ServerError):
    """Too few updates were admitted; the global model stays as it was.

    Attributes:
        round: The global round.
        admitted: Sites whose update was admitted, sorted.
        quorum: How many were needed.
        state: Of the strategy: weights after the round before, and what became of every site in this one.
    """

    def __init__(
        self,
        *,
        round: int,  # noqa: A002 - the term
        admitted: Sequence[str],
        quorum: int,
        state: StrategyState | None = None,
    ) -> None:
        self.round, self.admitted, self.quorum, self.state = round, tuple(admitted), quorum, state
        names = ", ".join(self.admitted) or "none"
        super().__init__(
            f"round {round}: {len(self.admitted)} updates admitted ({names}), quorum is {quorum}; "
            "see the rejections, bring the sites back and resume, or lower the quorum"
        )


class BudgetSpentError(QuorumLostError):
    """So many sites have refused for want of budget that no further round can reach the quorum."""

    def __init__(self, lost: QuorumLostError, spent: Sequence[str]) -> None:
        super().__init__(round=lost.round, admitted=lost.admitted, quorum=lost.quorum, state=lost.state)
        self.spent = tuple(spent)
        self.args = (
            f"round {lost.round}: {', '.join(self.spent)} refused: their privacy budget does not allow another round; "
            f"quorum is {lost.quorum}, so the run ends with the model of round {lost.round - 1}",
        )


class CheckpointError(ServerError):
    """A checkpoint cannot be written, read or resumed from."""
