"""From what a simulation trained to the report that a person opens."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

from deploy.config import Experiment
from deploy.plans import ALL_RECORDS
from deploy.simulation import diary
from deploy.simulation.evidence import measure
from deploy.simulation.judge import Judgement, judge, latent_use, pictures
from deploy.simulation.ledgers import ledger_path
from deploy.simulation.linear import linear_baselines
from deploy.simulation.run import Setting, Trained
from deploy.simulation.sites import POOLED, refused_records, spent_by_round
from privacy.accounting import CURVE_INTERVAL, Release, epsilons
from privacy.plan import PrivacyPlan
from server.federation import FederationPlan
from server.report.attacks import AttackFacts
from server.report.document import (
    FEDERATED_DP,
    LINEAR_DP,
    Attendance,
    LatentUse,
    ModelFacts,
    PlanFacts,
    PrivacyFacts,
    RejectedRow,
    Report,
    ResultRow,
    RoundEpsilon,
    SiteCurve,
    SitePrivacy,
    Timings,
    status_of,
)
from server.strategy import ADMITTED
from vae.models import signature_of
from vae.tasks.score import AnomalySettings
from vae.weights import hash_weights

_LIBRARIES = ("flwr", "torch", "opacus", "dp-accounting", "monai", "numpy")


def data_note(experiment: Experiment, refused: Mapping[str, Mapping[str, int]] | None = None) -> str:
    """Return where the data come from, and what may not be read into them.

    Args:
        experiment: What was run.
        refused: Site -> reason -> records of its own that could not be used.
    """
    data = experiment.data
    if data.kind == "phantom":
        source = (
            "the MNI ICBM 2009a template, itself an average of real scans (Fonov et al. 2011)"
            if data.founders is None
            else "the label maps of a folder that the configuration names"
        )
        return (
            f"Synthetic brains, deformed from {source}: none of these people exists. Figures made from them show that "
            "the method works, not how well it does on patients."
        )
    if data.kind == "abide":
        scale = (
            "standardised with constants of another, public cohort (OpenNeuro ds030; Poldrack et al. 2016)"
            if data.standardise == "public-ds030"
            else "as they are, not standardised"
        )
        return (
            f"Image-quality metrics, by MRIQC (Esteban et al. 2017), of real brain scans from {len(data.site_names)} "
            "of the 17 hospitals of ABIDE (Di Martino et al. 2014), with the verdicts of human raters; from the "
            f"package mriqc-learn (Apache-2.0); {scale}."
        )
    if data.kind == "toy":
        return "A made-up table: its figures show that the parts work together, and nothing about medicine."
    what = "tables" if data.kind == "table" else "scans"
    lost = [f"{sum(reasons.values())} at {site}" for site, reasons in (refused or {}).items()]
    return f"The hospitals' own {what}." + (
        f" Records refused as unusable: {', '.join(lost)}." if lost else ""
    )


def _public_note(experiment: Experiment) -> str:
    """Return what every arm started from, if from public data."""
    public = experiment.public
    if public is None:
        return ""
    return (
        f"Every arm starts from weights trained on public data ({public.data.kind}, {public.steps} steps), which costs "
        "no privacy. "
    )


def anomaly_settings(experiment: Experiment) -> AnomalySettings:
    """Return how anomalies are scored: lesions of a phantom without PET are bright in one contrast, dark in another."""
    data = experiment.data
    structural = data.kind == "phantom" and "pet" not in data.channels
    return AnomalySettings(direction="both" if structural else "auto")


def assemble(setting: Setting, trained: Trained, *, wall_s: float) -> Report:
    """Return the report of a simulation.

    Args:
        setting: What was run.
        trained: What came out.
        wall_s: How long it took in all [s].
    """
    experiment = setting.experiment
    judged = judge_arms(setting, trained)
    entries = diary.read(setting.out / "sites", (*experiment.site_names, POOLED))
    arm = subject(trained)
    plan, ended = (trained.plans[arm], trained.federated[arm]) if arm else (None, None)
    shown = next((found for found in trained.arms if found.name == arm), None)
    attacks = _attacks(setting, trained) if plan is not None and arm == FEDERATED_DP else None
    return Report(
        name=experiment.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=experiment.seed,
        engine=setting.engine,
        rounds_planned=experiment.federation.rounds if ended else 0,
        rounds_completed=ended.rounds_applied if ended else 0,
        sites=experiment.site_names,
        model=_model_facts(experiment, trained),
        privacy=_privacy(setting, plan) if plan is not None and arm == FEDERATED_DP else None,
        primary=primary_metric(judged.results),
        results=judged.results,
        differences=judged.differences,
        rejected=tuple(
            RejectedRow(round=row.round, site=row.site, reason=row.reason) for row in ended.state.rejections
        )
        if ended
        else (),
        participation=_attendance(ended.state.participation) if ended else (),
        faults=json.loads(experiment.faults.model_dump_json(exclude_defaults=True)),
        timings=_timings(trained, entries, arm, wall_s),
        synthetic=experiment.data.kind in ("phantom", "toy"),
        data_note=_public_note(experiment)
        + data_note(experiment, refused_records(experiment, setting.cache)),
        weights_sha256=hash_weights(ended.state.final) if ended and ended.round else None,
        curves=tuple(
            SiteCurve(site=entry.site, round=entry.round, reconstruction=entry.reconstruction, kl=entry.kl)
            for entry in entries
            if plan is not None and entry.run == plan.run_id
        ),
        latents=_latents(trained, arm),
        panels=pictures(trained.spec, shown, trained.sites, num=experiment.report.panels) if shown else None,
        attacks=attacks,
        environment=_environment(setting),
        config=experiment.resolved_yaml(),
    )


def judge_arms(setting: Setting, trained: Trained) -> Judgement:
    """Return the metrics of every arm of a simulation.

    Args:
        setting: What was run.
        trained: What came out.
    """
    experiment = setting.experiment
    return judge(
        trained.arms,
        trained.spec,
        trained.sites,
        seed=experiment.seed,
        num_bootstrap=experiment.report.bootstrap,
        with_mean="mean" in experiment.arms,
        baselines=linear_baselines(experiment, trained.sites, setting.cache),
        settings=anomaly_settings(experiment),
    )


def most_spent(setting: Setting, trained: Trained) -> float | None:
    """Return the largest epsilon that a site has spent, by the PLD accountant; None without a private arm.

    Args:
        setting: What was run.
        trained: What came out.
    """
    plan = trained.plans.get(FEDERATED_DP)
    if plan is None:
        return None
    folder = setting.out / "sites"
    spent: set[tuple[tuple[Release, ...], float]] = set()  # sites mostly spend the same: once is enough
    for site, asked in plan.plans.items():
        if isinstance(asked, PrivacyPlan):
            ledger = ledger_path(setting.experiment, folder, site)
            releases = tuple(each for _, each in spent_by_round(folder, site, plan.run_id, ledger))
            spent.add((releases, asked.delta))
    return max((epsilons(releases, delta).pld for releases, delta in spent if releases), default=None)


def _attacks(setting: Setting, trained: Trained) -> AttackFacts | None:
    """Return what attacks have shown, None where the experiment asks for none."""
    if setting.experiment.audit is None:
        return None
    setting.progress.note("attacks: canaries, membership, copies")
    arms = {arm.name: arm for arm in trained.arms}
    folder = setting.out / "arms"
    return measure(setting.experiment, trained.spec, trained.sites, arms, folder, initial=trained.initial)


def primary_metric(results: Sequence[ResultRow]) -> tuple[str, str] | None:
    """Return the metric that the verdict is about, fixed before anything is trained: by kind of data, not by result.

    Detection by Z-map, at 30 % where there are degrees (the middle of what Hassanaly et al. 2024 simulate).
    """
    present = {(row.task, row.metric) for row in results}
    wanted = (("anomaly", metric) for metric in ("auroc_zmap_30", "auroc_zmap", "auroc_residual"))
    return next((metric for metric in wanted if metric in present), None)


def subject(trained: Trained) -> str | None:
    """Return the arm that the report is about: federated with privacy if there is one."""
    return max(trained.federated, key=lambda arm: arm == FEDERATED_DP, default=None)


def not_covered(experiment: Experiment) -> tuple[str, ...]:
    """Return what the privacy statement does not cover, one plain sentence each."""
    others = [arm for arm in experiment.arms if arm != FEDERATED_DP]
    sentences = [
        *(
            ["The other arms of this comparison have no privacy; they exist in a simulation only."]
            if others
            else []
        ),
        "The metrics, Z-map statistics, curves and images of this report were computed on patients without noise.",
        "Choosing settings after looking at such a report spends privacy that is not counted here.",
        "Who took part, when, and the public constants of the plan are known to the server.",
    ]
    if LINEAR_DP in experiment.arms:
        sentences.append(
            "PCA with noise is a baseline: it costs each patient as much again, and no ledger counts it."
        )
    if experiment.public is not None:
        sentences.append(
            "The start was trained on data that count as public: whoever is among them has no privacy here."
        )
    if experiment.federation.sharing != "all":
        sentences.append(
            "Parameters that are not shared stay at their site; they are trained with the same noise."
        )
    return tuple(sentences)


def _model_facts(experiment: Experiment, trained: Trained) -> ModelFacts:
    """Return the facts of the model."""
    spec = trained.spec
    return ModelFacts(
        family=spec.family,
        parameters=sum(math.prod(shape) for _, shape, _ in signature_of(spec)),
        latent_size=spec.latent_size,
        input_shape=spec.input_shape,
        sharing=experiment.federation.sharing,
    )


def _privacy(setting: Setting, plan: FederationPlan) -> PrivacyFacts | None:
    """Return the privacy statement; None if no site has released anything.

    From the sites' own records, which a simulation may read: what a site sent too late, or what admission refused, has
    left the site and is spent, though no admitted claim says so.
    """
    asked = {site: each for site, each in plan.plans.items() if isinstance(each, PrivacyPlan)}
    folder = setting.out / "sites"
    spent = {
        site: spent_by_round(folder, site, plan.run_id, ledger_path(setting.experiment, folder, site))
        for site in asked
    }
    caps = setting.experiment.budget
    made = [
        _site_privacy(site, asked[site], releases, None if caps is None else caps.cap_of(site))
        for site, releases in spent.items()
        if releases
    ]
    if not made:
        return None
    first = next(iter(asked.values()))
    return PrivacyFacts(
        unit=first.unit,
        delta=first.delta,
        per_site=tuple(made),
        curve=tuple(
            point for site, releases in spent.items() for point in _curve(site, releases, first.delta)
        ),
        plan=_plan_facts(first) if len({each.divisor for each in asked.values()}) == 1 else None,
        not_covered=not_covered(setting.experiment),
    )


def _site_privacy(
    site: str, plan: PrivacyPlan, spent: Sequence[tuple[int, Release]], cap: float | None
) -> SitePrivacy:
    """Return what a site has spent."""
    releases = [release for _, release in spent]
    pair = epsilons(releases, plan.delta)
    return SitePrivacy(
        site=site,
        epsilon_rdp=pair.rdp,
        epsilon_pld=pair.pld,
        steps=sum(release.steps for release in releases),
        claim="dp" if plan.randomness == "os" else "seeded",
        cap=cap,
    )


def _plan_facts(plan: PrivacyPlan) -> PlanFacts:
    """Return the public constants of a plan."""
    cap = plan.max_records_per_patient
    return PlanFacts(
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        divisor=plan.divisor,
        max_records_per_patient=cap if cap < ALL_RECORDS else None,
        steps_per_round=plan.steps,
        bands=plan.bands if plan.mechanism == "banded" else None,
    )


def _curve(site: str, spent: Sequence[tuple[int, Release]], delta: float) -> Iterator[RoundEpsilon]:
    """Yield what a site had spent after each round."""
    releases: list[Release] = []
    for round_, release in spent:
        releases.append(release)
        pair = epsilons(releases, delta, interval=CURVE_INTERVAL)
        yield RoundEpsilon(round=round_, site=site, epsilon_rdp=pair.rdp, epsilon_pld=pair.pld)


def _attendance(participation: Sequence[Mapping[str, str]]) -> tuple[Attendance, ...]:
    """Return the grid of rounds and sites."""
    return tuple(
        _attended(round_, site, text)
        for round_, sites in enumerate(participation, start=1)
        for site, text in sites.items()
    )


def _attended(round_: int, site: str, text: str) -> Attendance:
    """Return a cell of the grid."""
    if text == ADMITTED:
        return Attendance(round=round_, site=site, status="admitted")
    status, detail = status_of(text)
    return Attendance(round=round_, site=site, status=status, detail=detail)


def _timings(trained: Trained, entries: list[diary.Entry], arm: str | None, wall_s: float) -> Timings:
    """Return seconds in all, of training, and of a round beside training (of the rounds run now)."""
    overhead = 0.0
    if arm is not None:
        run_id, rounds = trained.plans[arm].run_id, trained.rounds_now[arm]
        own = [entry for entry in entries if entry.run == run_id and entry.round in rounds]
        overhead = max(0.0, trained.wall_s[arm] - diary.busy_seconds(own)) / max(1, len(rounds))
    return Timings(
        wall_s=wall_s, train_cpu_s=sum(entry.cpu_s for entry in entries), overhead_s_per_round=overhead
    )


def _latents(trained: Trained, arm: str | None) -> tuple[LatentUse, ...]:
    """Return the use of latents after each round that was watched, and at the end."""
    found = next((each for each in trained.arms if each.name == arm), None)
    if found is None or arm is None:
        return ()
    site = next(iter(found.weights))
    last = trained.federated[arm].round
    watched = tuple(use for use in trained.latents[arm] if use.round < last)
    return (*watched, latent_use(trained.spec, found.weights[site], trained.sites, last))


def _environment(setting: Setting) -> dict[str, str]:
    """Return names and versions."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "workers": str(setting.workers),
        **{name: version(name) for name in _LIBRARIES},
    }
