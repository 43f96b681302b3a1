"""The verdict in plain words, generated from the numbers and from nothing else.

Guarantees (tests/unit/server/test_report_verdict.py):
    A difference is called better or worse only where its paired 95 % interval excludes zero.
    Seeded noise and missing noise are never called private.
    Bad news is said as plainly as good news.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    PrivacyClaim,
    PrivacyFacts,
    Report,
    Status,
)
from server.report.measures import (
    column_label,
    columns,
    compare,
    count,
    difference,
    interval,
    is_detection,
    measure,
    number,
)

Tone = Literal["plain", "good", "caution", "bad"]

_EPSILON_TOO_LARGE = 10.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence or two of the verdict, and how to colour them."""

    tone: Tone
    text: str


def verdict(report: Report) -> tuple[str, ...]:
    """Return what was trained, by whom, how private it is, whether it beats the baseline, what was lost."""
    return tuple(finding.text for finding in findings(report))


def findings(report: Report) -> tuple[Finding, ...]:
    """Return the verdict with its tones."""
    return (
        _trained(report),
        *_privacy(report),
        *_against_the_mean(report),
        *_against_others(report),
        *_lost(report),
    )


def claim_of(report: Report) -> PrivacyClaim:
    """Return the weakest claim of any site that took part; `none` where nothing is claimed."""
    claims = {row.claim for row in report.privacy.per_site} if report.privacy else {"none"}
    if not claims or "none" in claims:
        return "none"
    return "seeded" if "seeded" in claims else "dp"


def banner(report: Report) -> Finding | None:
    """Return what must stand above everything else, or None where a privacy claim is made."""
    claim = claim_of(report)
    if claim == "none":
        return Finding(
            tone="bad",
            text="NO PRIVACY. This model was trained without differential privacy. "
            "Treat its weights like patient data.",
        )
    if claim == "seeded":
        return Finding(
            tone="caution",
            text="SEEDED SIMULATION: NO PRIVACY CLAIM. The noise can be computed again from the seed. "
            "The epsilons below are what the same plan would spend with secure noise.",
        )
    return None


def cautions(report: Report) -> tuple[str, ...]:
    """Return what the numbers do not show."""
    shown = dict.fromkeys(measure(report, metric).caution for _, metric in columns(report))
    texts = [text for text in shown if text]
    if report.synthetic:
        texts.append(
            "The data are synthetic. They show that the method runs, not that it works on real patients."
        )
    if report.results:
        texts.append(
            "The 95 % bootstrap intervals describe these test data and this one training run "
            f"(seed {report.seed}); another seed gives other numbers."
        )
    if len(report.differences) >= 5:
        texts.append(
            f"{len(report.differences)} comparisons are made at 95 % each: "
            "about one in twenty would look real by chance."
        )
    unprotected = [arm for arm in report.arms if arm in (FEDERATED, CENTRALISED) or arm.startswith(ALONE)]
    if unprotected and report.subject == FEDERATED_DP:
        texts.append(
            'Arms marked "no privacy" or "alone" are yardsticks: nothing said about privacy covers them.'
        )
    if report.curves:
        texts.append(
            "Losses of single sites are visible because this is a simulation; "
            "in a deployment each hospital sees only its own."
        )
    return tuple(texts)


def subject_in_words(report: Report) -> str:
    """Return the arm that the report is about, as the subject of a sentence."""
    if report.subject == FEDERATED:
        return "the federated model"
    return (
        "the federated model with DP noise"
        if claim_of(report) != "dp"
        else "the federated model with differential privacy"
    )


def _trained(report: Report) -> Finding:
    """Say what was trained, by whom and for how long."""
    who = count(len(report.sites), "simulated site" if report.simulated else "hospital")
    names = f" ({', '.join(report.sites)})" if 0 < len(report.sites) <= 6 else ""
    kind = {"vae": "a variational autoencoder", "beta-vae": "a beta-VAE", "cvae": "a conditional VAE"}
    what = kind.get(report.model.family, f"a {report.model.family}")
    text = f"{who}{names} trained {what} with {count(report.model.parameters, 'parameter')} together"
    if report.rounds_completed == report.rounds_planned:
        return Finding(tone="plain", text=f"{text} for {count(report.rounds_completed, 'round')}.")
    return Finding(
        tone="bad",
        text=f"{text}, but stopped after {report.rounds_completed} of "
        f"{count(report.rounds_planned, 'planned round')}.",
    )


def _privacy(report: Report) -> tuple[Finding, ...]:
    """Say what is promised to a patient."""
    claim = claim_of(report)
    if report.privacy is None or claim == "none":
        return (
            Finding(
                tone="bad",
                text="No privacy is promised to anyone: updates were sent without calibrated noise.",
            ),
        )
    if claim == "seeded":
        worst = most_spent(report)
        spent = (
            f" With secure noise the same plan would have spent at most {_epsilon(worst)}." if worst else ""
        )
        return (
            Finding(
                tone="caution",
                text=f"No privacy claim is made: this is a simulation with seeded noise.{spent}",
            ),
        )
    return _promise(report, report.privacy)


def _promise(report: Report, privacy: PrivacyFacts) -> tuple[Finding, ...]:
    """Say what epsilon means for one patient, and where the promise is weak."""
    worst = most_spent(report)
    if worst is None:
        return (
            Finding(tone="bad", text="Sites claim differential privacy, but no finite epsilon was reported."),
        )
    epsilon = worst[0]
    one = "patient" if privacy.unit == "patient" else "record"
    text = (
        f"For every {one}, at every site: {_epsilon(worst)}, delta = {privacy.delta:g}. In plain words: "
        f"taking part changes the odds of any conclusion about that {one} by a factor of at most "
        f"{_factor(epsilon)}, except with probability delta."
    )
    found = [Finding(tone="plain" if epsilon <= _EPSILON_TOO_LARGE else "caution", text=text)]
    if epsilon > _EPSILON_TOO_LARGE:
        found.append(
            Finding(tone="caution", text="A bound this loose promises little: do not rely on it alone.")
        )
    if privacy.unit == "record":
        found.append(
            Finding(
                tone="caution",
                text="The unit of privacy is one record, not one patient: "
                "a patient with several scans is protected less.",
            )
        )
    if worst[1] is not None and epsilon > worst[1] * (1 + 1e-9):
        found.append(
            Finding(
                tone="bad",
                text="The two accountants disagree (PLD above RDP): have the accounting checked before use.",
            )
        )
    return tuple(found)


def _against_the_mean(report: Report) -> tuple[Finding, ...]:
    """Say whether the model beats predicting the mean, metric by metric."""
    pairs = columns(report)
    if not pairs:
        return (
            Finding(tone="caution", text="Nothing was evaluated, so nothing is known about the model's use."),
        )
    who = subject_in_words(report)
    baseline = "predicting the mean image" if report.model.is_image else "predicting the mean"
    grouped: dict[str, list[str]] = {}
    for task, metric in pairs:
        found = difference(report, report.subject, MEAN, task, metric)
        facts = measure(report, metric)
        outcome = compare(*found, facts.better) if found else "unknown"
        detail = (
            f"; difference {number(found[0], signed=True)}, {interval(found[1], signed=True)}"
            if found
            else ""
        )
        if facts.better != "neither":
            grouped.setdefault(outcome, []).append(
                f"{column_label(report, task, metric)}{_values(report, task, metric)}{detail}"
            )
    head = who[0].upper() + who[1:]
    sentences: dict[str, tuple[Tone, str]] = {
        "worse": ("bad", f"{head} ends worse than {baseline} on: "),
        "unclear": ("caution", f"{head} cannot be told from {baseline} on: "),
        "better": ("good", f"{head} beats {baseline} on: "),
        "unknown": ("caution", f"Whether it beats {baseline} is not known (no paired interval) on: "),
    }
    said = tuple(
        Finding(tone=tone, text=start + "; ".join(_shortened(grouped[outcome])) + ".")
        for outcome, (tone, start) in sentences.items()
        if outcome in grouped
    )
    return (*said, *_parity(report), *_chance(report))


def _values(report: Report, task: str, metric: str) -> str:
    """Return " (0.71 against 0.62" with the parenthesis left open for the difference, then closed."""
    values = {row.arm: row.value for row in report.results if (row.task, row.metric) == (task, metric)}
    if report.subject not in values or MEAN not in values:
        return ""
    return f" ({number(values[report.subject])} against {number(values[MEAN])})"


def _parity(report: Report) -> tuple[Finding, ...]:
    """Warn where images are drawn better than the mean and yet nothing is detected better."""
    outcomes: dict[bool, set[str]] = {True: set(), False: set()}
    for task, metric in columns(report):
        found = difference(report, report.subject, MEAN, task, metric)
        if found:
            outcomes[is_detection(metric)].add(compare(*found, measure(report, metric).better))
    if "better" in outcomes[False] and outcomes[True] and "better" not in outcomes[True]:
        text = (
            "It draws scans better than the mean does, and yet shows no gain in finding disease: "
            "drawing well is not detecting."
        )
        return (Finding(tone="caution", text=text),)
    return ()


def _chance(report: Report) -> tuple[Finding, ...]:
    """Warn where a metric of the model cannot be told from a coin toss."""
    labels = [
        column_label(report, row.task, row.metric)
        for row in report.results
        if row.arm == report.subject
        and row.ci95 is not None
        and (chance := measure(report, row.metric).chance) is not None
        and min(row.ci95) <= chance <= max(row.ci95)
    ]
    if not labels:
        return ()
    return (
        Finding(tone="bad", text=f"It cannot be told from a coin toss on: {'; '.join(_shortened(labels))}."),
    )


def _against_others(report: Report) -> tuple[Finding, ...]:
    """Say what privacy costs and what pooling all data would give, on the first metric."""
    found: list[Finding] = []
    pairs = [pair for pair in columns(report) if measure(report, pair[1]).better != "neither"]
    others = {FEDERATED: "the same training without noise", CENTRALISED: "training on all data in one place"}
    for other, words in others.items():
        if not pairs or other == report.subject:
            continue
        task, metric = pairs[0]
        gap = difference(report, report.subject, other, task, metric)
        outcome = compare(*gap, measure(report, metric).better) if gap else "unknown"
        if gap is None or outcome == "unknown":
            continue
        said = {"better": "better than", "worse": "worse than", "unclear": "not distinguishable from"}[
            outcome
        ]
        tone: Tone = "caution" if outcome == "worse" else "plain"
        text = (
            f"On {column_label(report, task, metric)} it is {said} {words} "
            f"(difference {number(gap[0], signed=True)}, {interval(gap[1], signed=True)})."
        )
        found.append(Finding(tone=tone, text=text))
    return tuple(found)


def _lost(report: Report) -> tuple[Finding, ...]:
    """Say how many contributions were lost, and name the sites whose updates were refused."""
    cells = Counter(row.status for row in report.participation)
    lost = sum(cells.values()) - cells["admitted"]
    found: list[Finding] = []
    if lost:
        words: dict[Status, str] = {
            "failed": "failed",
            "rejected": "rejected",
            "late": "late",
            "silent": "without an answer",
        }
        parts = ", ".join(f"{cells[status]} {word}" for status, word in words.items() if cells[status])
        text = f"{lost} of {count(sum(cells.values()), 'contribution')} were lost ({parts})."
        found.append(Finding(tone="caution", text=text))
    if report.rejected:
        by_site = Counter(row.site for row in report.rejected)
        names = _shortened([f"{site} ({times})" for site, times in by_site.most_common()])
        text = (
            f"{count(len(report.rejected), 'update')} refused before aggregation, so not in the model: "
            f"{', '.join(names)}."
        )
        found.append(Finding(tone="caution", text=text))
    return tuple(found)


def most_spent(report: Report) -> tuple[float, float | None, str] | None:
    """Return (epsilon by PLD, else by RDP; epsilon by RDP; site) of the site that has spent most, if finite."""
    if report.privacy is None:
        return None
    rows = [
        (best, row.epsilon_rdp, row.site)
        for row in report.privacy.per_site
        if (best := row.epsilon_pld if row.epsilon_pld is not None else row.epsilon_rdp) is not None
    ]
    if not rows or not all(math.isfinite(row[0]) for row in rows):
        return None
    return max(rows, key=lambda row: row[0])


def _epsilon(worst: tuple[float, float | None, str]) -> str:
    """Return "epsilon = 6.77 (PLD accountant; 7.33 by RDP)"."""
    rdp = f"; {number(worst[1])} by the coarser RDP accountant" if worst[1] is not None else ""
    return f"epsilon = {number(worst[0])} (PLD accountant{rdp})"


def _factor(epsilon: float) -> str:
    """Return e to the epsilon in words."""
    return (
        f"{number(math.exp(epsilon))} (e to the epsilon)"
        if epsilon < 14
        else "more than a million (e to the epsilon)"
    )


def _shortened(items: list[str], limit: int = 6) -> list[str]:
    """Return the first items, and how many there are beside."""
    return items if len(items) <= limit else [*items[: limit - 1], f"and {len(items) - limit + 1} more"]
