"""Checks of the server behind TLS: does it answer, and does its clock agree with ours."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from deploy.doctor.checks import Visit, check
from deploy.doctor.findings import Said, Severity, error, ok, skipped, warning
from deploy.doctor.line import Answer

AHEAD_S, BEHIND_S = 5.0, 305.0
"""By so much Flower 1.41 refuses a node: its signed time may lie at most 5 s after, and 305 s before, the server's."""

WARN_AHEAD_S, WARN_BEHIND_S = 2.0, 60.0

_UPSTREAM = frozenset((502, 503, 504))


@check(
    "http.health",
    asks="The server answers GET /health over that connection.",
    worst=Severity.ERROR,
    way_out="Ask the coordinating centre whether its SuperLink is up, and whether its proxy lets /health through.",
    needs=("tls.chain",),
    on_line=True,
)
def health(visit: Visit) -> Iterator[Said]:
    """Ask the server how it is."""
    done = visit.line.exchange
    trouble = done.http_trouble or done.tls_trouble
    if trouble is not None:
        yield error(trouble.found, trouble.fix)
    elif done.answer is None:
        yield error("the server gave no answer", "ask the coordinating centre what its server logs")
    elif done.answer.status == 200:
        yield ok(f"{visit.connection.address} answers GET /health")
    elif done.answer.status in _UPSTREAM:
        yield error(
            f"the coordinating centre's proxy answers {done.answer.status}: the SuperLink behind it is not up",
            "ask the coordinating centre to start its SuperLink; nothing has to change here",
        )
    else:
        yield error(
            f"{visit.connection.address} answers {done.answer.status} to GET /health: it is no SuperLink, or hides it",
            "check `connection.server`, and ask the coordinating centre whether its proxy lets /health through",
        )


@check(
    "clock.skew",
    asks="This machine's clock against the server's (5 s ahead or 305 s behind: Flower refuses this site).",
    worst=Severity.ERROR,
    way_out="Have this machine's time set by NTP.",
    needs=("tls.chain",),
    on_line=True,
)
def clock(visit: Visit) -> Iterator[Said]:
    """Compare the clocks."""
    answer = visit.line.exchange.answer
    ahead = None if answer is None else seconds_ahead(answer)
    if ahead is None:
        yield skipped("the server's answer holds no date to compare with")
        return
    # The header has whole seconds: half of one is what it cannot tell.
    where = "ahead of" if ahead > 0 else "behind"
    sentence = f"this machine's clock is {abs(ahead):.1f} s {where} the server's (to 0.5 s or so)"
    limits = f"Flower refuses a site that is {AHEAD_S:g} s ahead or {BEHIND_S:g} s behind"
    fix = "have this machine's time set by NTP (timedatectl); if it is right, tell the coordinating centre"
    if ahead > AHEAD_S or ahead < -BEHIND_S:
        yield error(f"{sentence}; {limits}", fix)
    elif ahead > WARN_AHEAD_S or ahead < -WARN_BEHIND_S:
        yield warning(f"{sentence}; {limits}", fix)
    else:
        yield ok(sentence)


def seconds_ahead(answer: Answer) -> float | None:
    """Return by how much this machine's clock is ahead of the server's [s], negative if behind; None if unknown.

    The header was made at some moment between question and answer, and its fraction of a second is cut off.
    """
    try:
        server = parsedate_to_datetime(answer.date).timestamp() + 0.5
    except ValueError:
        return None
    return (answer.asked_at + answer.answered_at) / 2 - server
