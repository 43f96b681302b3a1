"""A hospital's policy as the decision of its site: the plan to follow, at most tighter than the one asked for."""

from __future__ import annotations

from collections.abc import Callable

from client.contract import Plan, TrainRequest
from privacy.errors import RefusedError
from privacy.plan import PrivacyPlan
from privacy.policy import Ask, Policy


def decide_by(policy: Policy) -> Callable[[TrainRequest], Plan]:
    """Return what `client.site.Site` asks before it spends anything.

    Args:
        policy: The hospital's.
    """

    def decide(request: TrainRequest) -> Plan:
        """Return the plan to follow.

        Raises:
            RefusedError: with the first objection's code; its text names all of them, and stays at the site.
        """
        ask = Ask(plan=request.plan, model_hash=request.model.hash(), num_sites=request.num_sites)
        objections = policy.objections(ask)
        if objections or not isinstance(request.plan, PrivacyPlan):
            text = "; ".join(objection.sentence for objection in objections)
            raise RefusedError(objections[0].code, f"round {request.round} of {request.run_id:.64}: {text}")
        return policy.apply(request.plan)

    return decide
