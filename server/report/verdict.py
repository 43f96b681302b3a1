"""The verdict in plain words, generated from the numbers and from nothing else.

Guarantees (tests/unit/server/test_report_verdict.py):
    A difference is called better or worse only where its paired 95 % interval excludes zero.
    Bad news is said as plainly as good news.
"""

from __future__ import annotations

from collections import Counter

from client.contract import FailureCode
from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    SITE_MEAN,
    WARM_START,
    Report,
    Status,
    status_of,
)
from server.report.measures import (
    Comparison,
    column_label,
    column_places,
    columns,
    compare,
    difference,
    is_detection,
    measure,
    primary,
)
from server.report.promise import Finding, Tone, claim_of, privacy_findings
from server.report.words import count, decimals, interval, listed, number, shortened, shown

_OUTCOMES: dict[Comparison, tuple[Tone, str]] = {
    "worse": ("bad", "ends worse than"),
    "unclear": ("caution", "shows no clear difference from"),
    "better": ("good", "beats"),
    "unknown": ("caution", "has not been compared, with an interval, to"),
}


def verdict(report: Report) -> tuple[str, ...]:
    """Return what was trained, by whom, how private it is, whether it beats the baseline, what was lost."""
    return tuple(" ".join((finding.text, *finding.details)) for finding in findings(report))


def findings(report: Report) -> tuple[Finding, ...]:
    """Return the verdict with its tones."""
    return (
        _trained(report),
        *privacy_findings(report),
        *_kept_within_budget(report),
        *_against_the_mean(report),
        *_against_others(report),
        *_lost(report),
    )


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
    names = f" ({', '.join(shown(site, 30) for site in report.sites)})" if 0 < len(report.sites) <= 6 else ""
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


def _kept_within_budget(report: Report) -> tuple[Finding, ...]:
    """Say which sites refused a round because their budget did not allow it: that is a budget at work."""
    first: dict[str, int] = {}
    for row in sorted(report.participation, key=lambda row: row.round):
        if row.status == "failed" and row.detail == FailureCode.BUDGET.value:
            first.setdefault(row.site, row.round)
    if not first:
        return ()
    caps = {row.site: row.cap for row in report.privacy.per_site} if report.privacy else {}
    names = shortened(
        [
            f"{shown(site, 30)} (round {number}{'' if caps.get(site) is None else f', its cap is {caps[site]:g}'})"
            for site, number in first.items()
        ]
    )
    text = f"Refused to train further, because it would have cost a patient more than allowed: {', '.join(names)}."
    return (
        Finding(
            tone="plain", text=text, details=("Of such a round no data are opened, and nothing is spent.",)
        ),
    )


def _against_the_mean(report: Report) -> tuple[Finding, ...]:
    """Say whether the model beats predicting the mean, metric by metric."""
    pairs = columns(report)
    if not pairs:
        return (
            Finding(tone="caution", text="Nothing was evaluated, so nothing is known about the model's use."),
        )
    if report.subject not in report.arms:
        return (Finding(tone="caution", text="No federated model was judged, so nothing is known of one."),)
    if MEAN not in report.arms:
        text = "This run left out predicting the mean, so nothing shows that the model beats it."
        return (Finding(tone="caution", text=text), *_chance(report))
    baseline = "predicting the mean image" if report.model.is_image else "predicting the mean"
    who = subject_in_words(report)
    who = who[0].upper() + who[1:]
    first = primary(report)
    said: list[Finding] = []
    others: dict[Comparison, list[tuple[str, str]]] = {}
    for pair in pairs:
        outcome = _outcome(report, report.subject, MEAN, *pair)
        if pair == first:
            tone, verb = _OUTCOMES[outcome]
            text = f"{who} {verb} {baseline} on {column_label(report, *pair)}."
            said.append(
                Finding(tone=tone, text=text, details=(_behind(report, report.subject, MEAN, *pair),))
            )
        elif measure(report, pair[1]).better != "neither":
            others.setdefault(outcome, []).append(pair)
    said += [_other(report, baseline, outcome, others[outcome]) for outcome in _OUTCOMES if outcome in others]
    return (*said, *_parity(report), *_chance(report))


def _other(report: Report, baseline: str, outcome: Comparison, pairs: list[tuple[str, str]]) -> Finding:
    """Say on which other measures the model does as `outcome` says; bad news with all its figures."""
    tone, verb = _OUTCOMES[outcome]
    names = listed(shortened([column_label(report, *pair) for pair in pairs], 5))
    how_many = f"on {len(pairs)} other measures"
    text = (
        f"It {verb} {baseline} {how_many}: {names}."
        if len(pairs) > 1
        else f"It {verb} {baseline} on {names}."
    )
    worst = pairs[:4] if outcome == "worse" else ()
    return Finding(
        tone=tone, text=text, details=tuple(_behind(report, report.subject, MEAN, *pair) for pair in worst)
    )


def _outcome(report: Report, arm_a: str, arm_b: str, task: str, metric: str) -> Comparison:
    """Return what the paired difference of two arms shows."""
    found = difference(report, arm_a, arm_b, task, metric)
    return compare(*found, measure(report, metric).better) if found else "unknown"


def _behind(report: Report, arm_a: str, arm_b: str, task: str, metric: str) -> str:
    """Return the figures behind a comparison: both values, and the difference with its interval."""
    values = {row.arm: row.value for row in report.results if (row.task, row.metric) == (task, metric)}
    places = column_places(report, task, metric)
    label = column_label(report, task, metric)
    text = f"{label[0].upper()}{label[1:]}: "
    if arm_a in values and arm_b in values:
        text += f"{number(values[arm_a], places=places)} against {number(values[arm_b], places=places)}"
    found = difference(report, arm_a, arm_b, task, metric)
    if found is None:
        return text + "."
    own = None if found[1] is None else decimals([abs(found[1][1] - found[1][0])])
    gap, edges = number(found[0], signed=True, places=own), interval(found[1], signed=True, places=own)
    return f"{text}, difference {gap} ({edges})."


def _parity(report: Report) -> tuple[Finding, ...]:
    """Warn where images are drawn better than the mean and yet nothing is detected better."""
    outcomes: dict[bool, set[Comparison]] = {True: set(), False: set()}
    for task, metric in columns(report):
        outcomes[is_detection(metric)].add(_outcome(report, report.subject, MEAN, task, metric))
    if "better" in outcomes[False] and outcomes[True] and "better" not in outcomes[True]:
        text = (
            "It draws scans better than the mean does, and yet shows no gain in finding disease: "
            "drawing well is not detecting."
        )
        return (Finding(tone="caution", text=text),)
    return ()


def _chance(report: Report) -> tuple[Finding, ...]:
    """Warn where a metric of the model is not clearly better than a coin toss (of which more is better)."""
    labels = [
        column_label(report, row.task, row.metric)
        for row in report.results
        if row.arm == report.subject
        and row.ci95 is not None
        and (chance := measure(report, row.metric).chance) is not None
        and min(row.ci95) <= chance
    ]
    if not labels:
        return ()
    text = f"It is not clearly better than a coin toss on {listed(shortened(labels))}."
    return (Finding(tone="bad", text=text),)


def _against_others(report: Report) -> tuple[Finding, ...]:
    """Say what privacy costs and what pooling all data would give, on the first metric."""
    found: list[Finding] = []
    first = primary(report)
    others = {
        SITE_MEAN: "predicting each site's own mean",
        WARM_START: "the public weights that it started from",
        FEDERATED: "the same training without noise",
        CENTRALISED: "training on all data in one place",
    }
    for other, words in others.items():
        if first is None or other == report.subject:
            continue
        outcome = _outcome(report, report.subject, other, *first)
        if outcome == "unknown":
            continue
        said = {"better": "better than", "worse": "worse than", "unclear": "not clearly different from"}[
            outcome
        ]
        found.append(
            Finding(
                tone="caution" if outcome == "worse" else "plain",
                text=f"On {column_label(report, *first)} it is {said} {words}.",
                details=(_behind(report, report.subject, other, *first),),
            )
        )
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
            "unused": "in a round without quorum",
        }
        parts = ", ".join(f"{cells[status]} {word}" for status, word in words.items() if cells[status])
        text = f"{lost} of {count(sum(cells.values()), 'contribution')} were lost ({parts})."
        found.append(Finding(tone="caution", text=text))
    refused = [row for row in report.rejected if status_of(row.reason)[0] == "rejected"]
    if refused:
        by_site = Counter(row.site for row in refused)
        names = shortened([f"{shown(site, 30)} ({times})" for site, times in by_site.most_common()])
        text = (
            f"{count(len(refused), 'update')} refused before aggregation, so not in the model: "
            f"{', '.join(names)}."
        )
        found.append(Finding(tone="caution", text=text))
    return tuple(found)
