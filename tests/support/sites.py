"""Small synthetic sites whose scores can be worked out by hand."""

from __future__ import annotations

import numpy as np

from vae.data.cohort import Cohort, SiteData

SIDE = 16
BRAIN = np.zeros((SIDE, SIDE), bool)
BRAIN[2:-2, 2:-2] = True
LESION = np.zeros((SIDE, SIDE), bool)
LESION[3:7, 3:7] = True
DEGREES = (10.0, 40.0)


def image_site(
    name: str, *, seed: int, patients: int = 8, level: float = 0.6, shape=(SIDE, SIDE)
) -> SiteData:
    """Flat brains of their own brightness; each test patient has a healthy scan and one a degree."""
    rng = np.random.default_rng(seed)
    brain, lesion = np.broadcast_to(BRAIN.T, shape[::-1]).T, np.broadcast_to(LESION.T, shape[::-1]).T

    def scans(count):
        own = level + 0.05 * rng.standard_normal((count, 1, *[1] * len(shape)))
        return ((own + 0.02 * rng.standard_normal((count, 1, *shape))) * brain).astype(np.float32)

    def cohort(kind):
        return Cohort.from_records(
            name=name, patients=[f"{kind}{p}" for p in range(patients)], values=scans(patients)
        )

    healthy = scans(patients)
    values, keys, anomaly, degree, masks = [], [], [], [], []
    for p in range(patients):
        for percent in (0.0, *DEGREES):
            values.append(healthy[p] * (1 - percent / 100 * lesion))
            keys.append(f"test{p}")
            anomaly.append(percent > 0)
            degree.append(percent)
            masks.append(lesion if percent else np.zeros_like(lesion))
    test = Cohort.from_records(
        name=name,
        patients=keys,
        values=np.stack(values).astype(np.float32),
        labels={
            "anomaly": np.array(anomaly, np.float32),
            "degree": np.array(degree, np.float32),
            "lesion": np.stack(masks).astype(np.uint8),
        },
    )
    return SiteData(train=cohort("train"), test=test, reference=cohort("reference"))


def table_site(name: str, *, seed: int, patients: int = 30, shift: float = 0.0) -> SiteData:
    rng = np.random.default_rng(seed)

    def cohort(kind, count, spread=1.0):
        values = shift + spread * rng.standard_normal((count, 6))
        return Cohort.from_records(
            name=name, patients=[f"{kind}{p}" for p in range(count)], values=values.astype(np.float32)
        )

    normal, strange = cohort("n", patients), cohort("s", patients // 3, spread=2.0)
    test = Cohort.from_records(
        name=name,
        patients=normal.patients + strange.patients,
        values=np.concatenate([normal.values, strange.values]),
        labels={"anomaly": np.repeat([0.0, 1.0], [patients, patients // 3]).astype(np.float32)},
    )
    return SiteData(train=cohort("t", patients), test=test, reference=cohort("r", patients))


def identity(values, covariates):
    return values


def healed(values, covariates):
    """A perfect model of these scans: each brain flat at the brightness of its unharmed part."""
    rest = BRAIN & ~LESION
    level = values[:, :, rest].mean(axis=2)[..., None, None]
    return (level * BRAIN).astype(np.float32)
