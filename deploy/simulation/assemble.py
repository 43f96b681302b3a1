"""From what a simulation trained to the report that a person opens."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version

from deploy.config import Experiment
from deploy.simulation import diary
from deploy.simulation.judge import judge, latent_use, pictures
from deploy.simulation.run import Setting, Trained
from privacy.accounting import CURVE_INTERVAL, Release, epsilons
from privacy.claim import Claim
from privacy.plan import PrivacyPlan
from server.federation import FederationPlan
from server.report.document import (
    FEDERATED_DP,
    Attendance,
    LatentUse,
    ModelFacts,
    PlanFacts,
    PrivacyFacts,
    RejectedRow,
    Report,
    RoundEpsilon,
    SiteCurve,
    SitePrivacy,
    Status,
    Timings,
)
from vae.models import signature_of
from vae.weights import hash_weights

_LIBRARIES = ("flwr", "torch", "opacus", "dp-accounting", "monai", "numpy")

_DATA_NOTES: Mapping[str, str] = {
    "phantom": (
        "Synthetic brains, deformed from the MNI ICBM 2009a template (Fonov et al. 2011) or from label maps: no person "
        "was scanned. Figures made from them show that the method works, not how it does on patients."
    ),
    "abide": (
        "Image-quality metrics of 1,101 real brain scans from 17 hospitals (ABIDE; Di Martino et al. 2014), by MRIQC "
        "(Esteban et al. 2017), with the verdicts of human raters, from the package mriqc-learn (Apache-2.0). "
        "Standardised with constants of another, public cohort (OpenNeuro ds030)."
    ),
    "toy": "A made-up table: it exercises every part and shows nothing about medicine.",
    "nifti": "The hospitals' own scans.",
    "dicom": "The hospitals' own scans.",
    "table": "The hospitals' own tables.",
}


def assemble(setting: Setting, trained: Trained, *, wall_s: float) -> Report:
    """Return the report of a simulation.

    Args:
        setting: What was run.
        trained: What came out.
        wall_s: How long it took in all [s].
    """
    experiment = setting.experiment
    judged = judge(
        trained.arms,
        trained.spec,
        trained.sites,
        seed=experiment.seed,
        num_bootstrap=experiment.report.bootstrap,
        with_mean="mean" in experiment.arms,
    )
    entries = diary.read(setting.out / "sites", setting.experiment.site_names)
    arm = subject(trained)
    plan, ended = (trained.plans[arm], trained.federated[arm]) if arm else (None, None)
    shown = next((found for found in trained.arms if found.name == arm), None)
    return Report(
        name=experiment.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=experiment.seed,
        engine=setting.engine,
        rounds_planned=experiment.federation.rounds,
        rounds_completed=ended.round if ended else 0,
        sites=experiment.site_names,
        model=_model_facts(experiment, trained),
        privacy=_privacy(setting, plan, ended.state.claims if ended else {}) if arm == FEDERATED_DP else None,
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
        data_note=_DATA_NOTES[experiment.data.kind],
        weights_sha256=hash_weights(ended.state.weights) if ended else None,
        curves=tuple(
            SiteCurve(site=entry.site, round=entry.round, reconstruction=entry.reconstruction, kl=entry.kl)
            for entry in entries
            if plan is not None and entry.run == plan.run_id
        ),
        latents=_latents(trained, arm),
        panels=pictures(trained.spec, shown, trained.sites, num=experiment.report.panels) if shown else None,
        environment=_environment(setting),
        config=experiment.resolved_yaml(),
    )


def subject(trained: Trained) -> str | None:
    """Return the arm that the report is about: federated with privacy if there is one."""
    return max(trained.federated, key=lambda arm: arm == FEDERATED_DP, default=None)


def not_covered(experiment: Experiment) -> tuple[str, ...]:
    """Return what the privacy statement does not cover, one plain sentence each."""
    sentences = [
        "The other arms of this comparison were trained without privacy; they exist in a simulation only.",
        "The metrics, Z-map statistics, curves and images of this report were computed on patients without noise.",
        "Choosing settings after looking at such a report spends privacy that is not counted here.",
        "Who took part, when, and the public constants of the plan are known to the server.",
    ]
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


def _privacy(setting: Setting, plan: FederationPlan | None, claims: Mapping[str, str]) -> PrivacyFacts | None:
    """Return the privacy statement: from the claims that the sites signed off with their updates."""
    if plan is None or not claims:
        return None
    made = {site: Claim.from_json(text) for site, text in sorted(claims.items())}
    first = next(iter(made.values()))
    asked = [each for each in plan.plans.values() if isinstance(each, PrivacyPlan)]
    return PrivacyFacts(
        unit=first.unit,
        delta=first.delta,
        per_site=tuple(_site_privacy(claim) for claim in made.values()),
        curve=_curve(setting, plan, first.delta),
        plan=_plan_facts(asked[0]) if len({each.divisor for each in asked}) == 1 else None,
        not_covered=not_covered(setting.experiment),
    )


def _site_privacy(claim: Claim) -> SitePrivacy:
    """Return what a site has spent."""
    pair = claim.epsilons()
    return SitePrivacy(
        site=claim.site,
        epsilon_rdp=pair.rdp,
        epsilon_pld=pair.pld,
        steps=sum(release.steps for release in claim.releases),
        claim=claim.kind,
    )


def _plan_facts(plan: PrivacyPlan) -> PlanFacts:
    """Return the public constants of a plan."""
    cap = plan.max_records_per_patient
    return PlanFacts(
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        divisor=plan.divisor,
        max_records_per_patient=cap if cap < 2**31 - 1 else None,
        steps_per_round=plan.steps,
    )


def _curve(setting: Setting, plan: FederationPlan, delta: float) -> tuple[RoundEpsilon, ...]:
    """Return what each site had spent after each round, from the sites' own records: a simulation may read them."""
    points = []
    for site in setting.experiment.site_names:
        releases: list[Release] = []
        for round_, release in _spent(setting, site, plan.run_id):
            releases.append(release)
            pair = epsilons(releases, delta, interval=CURVE_INTERVAL)
            points.append(RoundEpsilon(round=round_, site=site, epsilon_rdp=pair.rdp, epsilon_pld=pair.pld))
    return tuple(points)


def _spent(setting: Setting, site: str, run_id: str) -> list[tuple[int, Release]]:
    """Return (round, release) of a virtual site's record, in order."""
    path = setting.out / "sites" / site / f"spent-{run_id}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [(int(entry["key"].split("/")[-2]), Release.from_dict(entry["release"])) for entry in entries]


def _attendance(participation: tuple[Mapping[str, str], ...]) -> tuple[Attendance, ...]:
    """Return the grid of rounds and sites."""
    return tuple(
        Attendance(round=round_, site=site, status=_status(text), detail="" if text == "admitted" else text)
        for round_, sites in enumerate(participation, start=1)
        for site, text in sites.items()
    )


def _status(text: str) -> Status:
    """Return the column of the grid that a status belongs to."""
    if text == "admitted":
        return "admitted"
    if text.startswith("site-failed"):
        return "failed"
    return {"no-reply": "silent", "late": "late"}.get(text, "rejected")  # type: ignore[return-value] # of Status


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
    watched = tuple(use for use in trained.latents if use.round != last)
    return (*watched, latent_use(trained.spec, found.weights[site], trained.sites, last))


def _environment(setting: Setting) -> dict[str, str]:
    """Return names and versions."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "workers": str(setting.workers),
        **{name: version(name) for name in _LIBRARIES},
    }
