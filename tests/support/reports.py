"""Believable reports for tests: made up from a seed, never measured.

`image_report`: four sites, phantom images, faults, rejections. `table_report`: 17 sites, 100 rounds, a table,
seeded. `unprotected_report`: as the first, trained without privacy. Variants: `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from server.report import (
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    Attendance,
    DifferenceRow,
    LatentUse,
    ModelFacts,
    Panels,
    PlanFacts,
    PrivacyFacts,
    RejectedRow,
    Report,
    ResultRow,
    RoundEpsilon,
    SiteCurve,
    SitePrivacy,
    Timings,
    alone,
)
from server.report.attacks import AttackFacts, Canaries, MembershipFacts, MemorisationFacts

HASH = "9f" * 32
NOT_COVERED = (
    "Who took part in which round: the server sees it.",
    "Preprocessing constants and the model's architecture, which are public.",
    "The test data: they are not trained on and nothing protects them in this report.",
    "Choosing hyper-parameters on other runs with the same patients.",
)
ENVIRONMENT = {
    "Python": "3.11.2",
    "PyTorch": "2.13.0",
    "Flower": "1.41.0",
    "Opacus": "1.6.0",
    "System": "Linux x86-64",
    "Processor": "2 cores",
}
ABIDE_SITES = (
    *(
        "PITT",
        "OLIN",
        "OHSU",
        "SDSU",
        "TRINITY",
        "UM",
        "USM",
        "YALE",
        "CMU",
        "LEUVEN",
        "KKI",
        "NYU",
        "STANFORD",
    ),
    *("UCLA", "MAX_MUN", "CALTECH", "SBL"),
)
DEGREES = (5, 10, 30, 50, 70)


def _arms(mean: float, federated: float, private: float, central: float) -> dict[str, float]:
    return {MEAN: mean, FEDERATED: federated, FEDERATED_DP: private, CENTRALISED: central}


IMAGE_RESULTS = {
    **{
        ("anomaly", f"auroc_zmap_{degree}"): (0.02, _arms(*values))
        for degree, values in zip(
            DEGREES,
            (
                (0.51, 0.515, 0.505, 0.53),
                (0.54, 0.56, 0.54, 0.58),
                (0.656, 0.716, 0.668, 0.762),
                (0.832, 0.886, 0.86, 0.952),
                (0.90, 0.955, 0.93, 0.985),
            ),
            strict=True,
        )
    },
    **{
        ("anomaly", f"dice_{degree}"): (
            0.015,
            _arms(0.006 * degree, 0.009 * degree, 0.007 * degree, 0.01 * degree),
        )
        for degree in DEGREES
    },
    ("anomaly", "auroc_zmap"): (0.02, _arms(0.69, 0.73, 0.70, 0.77)),
    ("anomaly", "auroc_zmap_within_site"): (0.02, _arms(0.70, 0.74, 0.71, 0.775)),
    ("reconstruction", "mse_brain"): (0.0004, _arms(0.01151, 0.00539, 0.00966, 0.00448)),
    ("reconstruction", "ssim_brain"): (0.008, _arms(0.71, 0.83, 0.75, 0.86)),
    ("pseudo-healthy", "healthiness_reconstruction"): (0.004, _arms(1.245, 1.236, 1.230, 1.236)),
}


def brain(rng: np.random.Generator, *, size: int = 64, ventricle: float = 1.0) -> np.ndarray:
    """Return a made-up axial slice [size, size] in [0, 1]: cortex, white matter, ventricles."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = np.arctan2(y, x)
    wobble = sum(rng.normal(0, 0.012) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 9))
    radius = np.sqrt((x / 0.72) ** 2 + (y / 0.88) ** 2) + wobble
    folds = 0.05 * np.cos(17 * angle + 3 * np.sin(5 * angle))
    image = 0.78 * (radius < 1) - 0.3 * (radius < 0.83 + folds)
    for side in (-1, 1):
        image -= 0.3 * ventricle * (((x - side * 0.13) / 0.085) ** 2 + ((y + 0.05) / 0.3) ** 2 < 1)
        image += 0.25 * (((x - side * 0.22) / 0.1) ** 2 + ((y - 0.08) / 0.16) ** 2 < 1)
    image -= 0.35 * ((np.abs(x) < 0.018) & (radius < 0.97))
    return np.clip(gaussian_filter(image, 0.9), 0, 1).astype(np.float32)


def panels(*, seed: int = 0, scans: int = 6) -> Panels:
    """Return made-up panels: the last scans have a region of low uptake that grows stronger."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    truth = np.zeros((scans, 64, 64), dtype=bool)
    originals, twins = [], []
    degrees = np.linspace(0, 60, scans)
    for n, degree in enumerate(degrees):
        scan = brain(rng, ventricle=0.9 + 0.2 * rng.random())
        twins.append(gaussian_filter(scan, 1.1) + gaussian_filter(rng.normal(0, 0.05, scan.shape), 3))
        region = ((x + 0.32) / 0.26) ** 2 + ((y - 0.42) / 0.22) ** 2 < 1
        truth[n] = region & (degree > 0)
        hypo = 1 - degree / 100 * gaussian_filter(region.astype(float), 2.5)
        originals.append(np.clip(scan * hypo + rng.normal(0, 0.025, scan.shape), 0, 1))
    original, twin = np.array(originals, np.float32), np.array(twins, np.float32)
    residual = original - twin
    spread = 0.03 + gaussian_filter(np.abs(residual[0]), 3)
    steps = np.linspace(-3, 3, 7)
    base = gaussian_filter(brain(rng), 1)
    modes = (
        -np.exp(-((np.abs(x) - 0.13) ** 2 / 0.02 + y**2 / 0.1)),
        np.exp(-((np.hypot(x / 0.72, y / 0.88) - 0.9) ** 2) / 0.02),
        x * (base > 0.2),
    )
    traversals = np.array(
        [[np.clip(base + 0.08 * step * mode, 0, 1) for step in steps] for mode in modes], np.float32
    )
    return Panels(
        original=original,
        reconstruction=twin,
        residual=residual,
        zmap=(gaussian_filter(residual, (0, 0.8, 0.8)) / spread).astype(np.float32),
        truth=truth,
        labels=("normal", *(f"hypometabolism {degree:.0f} %" for degree in degrees[1:])),
        traversals=traversals,
        traversal_labels=("latent 3 (KL 2.1)", "latent 7 (KL 1.6)", "latent 1 (KL 0.9)"),
        traversal_values=tuple(float(step) for step in steps),
        example=min(4, scans - 1),
        samples=np.array(
            [gaussian_filter(brain(rng, ventricle=rng.uniform(0.5, 1.5)), 1.2) for _ in range(9)]
        ),
    )


def results(table, sites, *, seed: int = 0):
    """Return (results, differences) around given values; sites alone lie between the mean and federated."""
    rng = np.random.default_rng(seed)
    rows, gaps = [], []
    for (task, metric), (half, values) in table.items():
        local = {
            alone(site): values[MEAN] + rng.uniform(-0.1, 0.7) * (values[FEDERATED] - values[MEAN])
            for site in sites
        }
        for arm, value in {**values, **local}.items():
            rows.append(
                ResultRow(
                    arm=arm,
                    task=task,
                    metric=metric,
                    value=value,
                    ci95=(value - half * 1.4, value + half * 1.5),
                )
            )
        for arm_a, arm_b in ((FEDERATED_DP, MEAN), (FEDERATED_DP, FEDERATED), (FEDERATED_DP, CENTRALISED)):
            gap = values[arm_a] - values[arm_b]
            gaps.append(
                DifferenceRow(
                    arm_a=arm_a,
                    arm_b=arm_b,
                    task=task,
                    metric=metric,
                    value=gap,
                    ci95=(gap - half, gap + half),
                )
            )
    return tuple(rows), tuple(gaps)


def participation(sites, rounds: int, *, seed: int = 0, loss: float = 0.05):
    """Return made-up attendance: the second site sends NaN in rounds 1 and 2, others drop out at times."""
    rng = np.random.default_rng(seed)
    cells = []
    for turn in range(1, rounds + 1):
        for place, site in enumerate(sites):
            if place == 1 and turn <= 2:
                cells.append(Attendance(round=turn, site=site, status="rejected", detail="not-finite"))
            elif rng.random() < loss:
                status, detail = (("failed", "out-of-memory"), ("late", ""), ("silent", ""))[
                    int(rng.integers(3))
                ]
                cells.append(Attendance(round=turn, site=site, status=status, detail=detail))
            else:
                cells.append(Attendance(round=turn, site=site, status="admitted"))
    return tuple(cells)


def privacy(sites, cells, *, claim="dp", top: float = 6.2) -> PrivacyFacts:
    """Return made-up epsilons that grow with the square root of the rounds a site has trained in."""
    rounds = max(cell.round for cell in cells)
    trained = dict.fromkeys(sites, 0)
    curve = []
    for turn in range(1, rounds + 1):
        for cell in cells:
            if cell.round == turn:
                trained[cell.site] += cell.status in ("admitted", "rejected", "late")
                pld = top * (0.25 + 0.75 * trained[cell.site] / rounds) ** 0.5
                curve.append(
                    RoundEpsilon(round=turn, site=cell.site, epsilon_rdp=pld * 1.083, epsilon_pld=pld)
                )
    final = {row.site: row for row in curve}
    return PrivacyFacts(
        unit="patient",
        delta=1e-5,
        per_site=tuple(
            SitePrivacy(
                site=site,
                epsilon_rdp=final[site].epsilon_rdp,
                epsilon_pld=final[site].epsilon_pld,
                steps=trained[site] * 20,
                claim=claim,
            )
            for site in sites
        ),
        curve=tuple(curve),
        plan=PlanFacts(
            sampling_probability=0.04,
            noise_multiplier=1.5,
            max_grad_norm=1.0,
            divisor=8.0,
            max_records_per_patient=4,
            steps_per_round=20,
        ),
        not_covered=NOT_COVERED,
    )


def curves(sites, cells, *, seed: int = 0):
    """Return made-up losses."""
    rng = np.random.default_rng(seed)
    level = {site: rng.uniform(0.9, 1.3) for site in sites}
    return tuple(
        SiteCurve(
            site=cell.site,
            round=cell.round,
            reconstruction=float(
                level[cell.site] * (900 * np.exp(-cell.round / 8) + 420 + rng.normal(0, 12))
            ),
            kl=float(18 * (1 - np.exp(-cell.round / 6)) * level[cell.site] + rng.normal(0, 0.5)),
        )
        for cell in cells
        if cell.status in ("admitted", "rejected", "late")
    )


def latents(rounds: int, size: int, *, seed: int = 0):
    """Return made-up use of latent dimensions: some never wake up."""
    rng = np.random.default_rng(seed)
    final = np.sort(rng.gamma(0.7, 1.2, size))[::-1]
    table = [final * (1 - np.exp(-turn / rng.uniform(4, 12, size))) for turn in range(1, rounds + 1)]
    return tuple(
        LatentUse(round=turn, kl_per_latent=tuple(map(float, row)), active_units=int((row > 0.2).sum()))
        for turn, row in enumerate(table, start=1)
    )


def attacks() -> AttackFacts:
    """Attacks on a run whose claim stands: the bounds of one audit, and a model that knows nobody."""
    gradient = Canaries(
        claimed_pld=5.43,
        claimed_rdp=5.91,
        delta=1e-5,
        lower_bound=1.417,
        lower_bound_fdp=1.839,
        confidence=0.95,
        num_canaries=1000,
        auc=0.78,
        steps=300,
        seconds=21.4,
        violated=False,
        sees="every step",
    )
    return AttackFacts(
        gradient=gradient,
        control=replace(gradient, lower_bound=9.0, violated=True),
        black_box=replace(gradient, lower_bound=0.0, lower_bound_fdp=0.0, auc=0.51, num_canaries=200),
        membership=MembershipFacts(
            auc=0.53,
            auc_ci95=(0.44, 0.62),
            true_positive_rate=0.02,
            true_positive_rate_ci95=(0.0, 0.06),
            fpr=0.01,
            is_resolved=False,
            num_members=224,
            num_non_members=40,
            num_references=3,
        ),
        memorisation=MemorisationFacts(
            share=0.86,
            expected=0.85,
            range95=(0.8, 0.9),
            median_train=2.31,
            median_held_out=2.34,
            num_samples=200,
        ),
    )


def image_report(*, claim: str = "dp", rounds: int = 30) -> Report:
    """Return four sites, images, faults, rejections."""
    sites = ("site-1", "site-2", "site-3", "site-4")
    cells = participation(sites, rounds)
    rows, gaps = results(IMAGE_RESULTS, sites)
    return Report(
        attacks=attacks(),
        name="phantom3d",
        created="2026-03-02T09:30:00+00:00",
        seed=7,
        engine="local",
        rounds_planned=rounds,
        rounds_completed=rounds,
        sites=sites,
        model=ModelFacts(
            family="beta-vae", parameters=199_432, latent_size=16, input_shape=(1, 48, 48, 48), sharing="all"
        ),
        privacy=privacy(sites, cells, claim=claim),
        results=rows,
        differences=gaps,
        rejected=tuple(
            RejectedRow(round=cell.round, site=cell.site, reason="not-finite")
            for cell in cells
            if cell.status == "rejected"
        ),
        participation=cells,
        primary=("anomaly", "auroc_zmap_30"),
        faults={"site-2": {"update": "nan", "rounds": [1, 2]}, "dropout": 0.05},
        timings=Timings(wall_s=212.4, train_cpu_s=371.9, overhead_s_per_round=0.0173),
        weights_sha256=HASH,
        curves=curves(sites, cells),
        latents=latents(rounds, 16),
        panels=panels(),
        synthetic=True,
        data_note="Synthetic people made from the MNI152 template; PET-like volumes. No real patient.",
        environment=ENVIRONMENT,
        config="seed: 7\nrounds: 30\nprivacy:\n  noise_multiplier: 1.5\n",
    )


def table_report(*, rounds: int = 100) -> Report:
    """Return 17 sites, 100 rounds, a table, seeded noise, a model that does not beat the mean."""
    sites = tuple(ABIDE_SITES)
    cells = participation(sites, rounds, loss=0.3)
    rows, gaps = results(
        {
            ("anomaly", "auroc_zmap_within_site"): (
                0.045,
                {MEAN: 0.741, FEDERATED: 0.792, FEDERATED_DP: 0.702, CENTRALISED: 0.801},
            ),
            ("reconstruction", "mse"): (
                0.05,
                {MEAN: 1.02, FEDERATED: 0.61, FEDERATED_DP: 1.31, CENTRALISED: 0.52},
            ),
        },
        sites,
    )
    return Report(
        name="abide",
        created="2026-03-02",
        seed=11,
        engine="local",
        rounds_planned=rounds,
        rounds_completed=rounds,
        sites=sites,
        model=ModelFacts(family="vae", parameters=9_412, latent_size=8, input_shape=(68,), sharing="all"),
        privacy=privacy(sites, cells, claim="seeded", top=8.0),
        results=rows,
        differences=gaps,
        rejected=tuple(
            RejectedRow(round=cell.round, site=cell.site, reason="not-finite")
            for cell in cells
            if cell.status == "rejected"
        ),
        participation=cells,
        faults={"dropout": 0.3},
        timings=Timings(wall_s=61.0, train_cpu_s=44.2, overhead_s_per_round=0.021),
        weights_sha256=HASH,
        curves=curves(sites, cells),
        latents=latents(rounds, 8),
        synthetic=False,
        data_note="ABIDE image-quality metrics (MRIQC), 17 real sites; "
        "Esteban et al. 2017, doi:10.1371/journal.pone.0184661.",
        environment=ENVIRONMENT,
    )


def unprotected_report() -> Report:
    """Return the image case trained without privacy: no DP arm, no statement."""
    private = image_report(rounds=12)
    return replace(
        private,
        name="no privacy",
        privacy=None,
        results=tuple(row for row in private.results if row.arm != FEDERATED_DP),
        differences=tuple(replace(row, arm_a=FEDERATED) for row in private.differences if row.arm_b == MEAN),
    )
