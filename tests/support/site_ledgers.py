"""A ledger in a site's folder, with key, salt and policy, for tests of sites."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from privacy import genesis
from privacy.accounting import Release
from privacy.filters import RenyiFilter, choose_order
from privacy.ledger import Ledger
from privacy.policy import Cap, Policy
from privacy.roster import create_salt, load_salt
from privacy.signing import create_key, load_key

POLICY = Policy(
    lifetime=Cap(epsilon=1e3, delta=1e-3),
    per_run=Cap(epsilon=1e3, delta=1e-3),
    min_noise_multiplier=0.1,
    max_sampling_probability=1.0,
    max_steps_per_round=1000,
    max_grad_norm=100.0,
    max_records_per_patient=2**31 - 1,
    unit="patient",
    randomness="seeded",
    min_patients=1,
    patients_bound=100,
    models="any",
    metrics={},
    min_sites=1,
    max_runtime_s=3600.0,
)


def open_ledger(
    folder: Path,
    patients: Iterable[str],
    *,
    epsilon: float = 1e3,
    delta: float = 1e-3,
    seeded: bool = True,
    release: Release | None = None,
) -> Ledger:
    """Return the ledger of a folder, begun at the first call."""
    folder.mkdir(parents=True, exist_ok=True)
    path, key_path, salt_path = folder / "ledger.sqlite", folder / "site.pem", folder / "salt"
    if path.exists():
        return Ledger.open(path, key=load_key(key_path), salt=load_salt(salt_path))
    order = choose_order(epsilon=epsilon, delta=delta, release=release)
    return genesis.begin(
        path,
        site=folder.name,
        dataset="cohort",
        rule=RenyiFilter(epsilon=epsilon, delta=delta, order=order),
        patients=patients,
        key=create_key(key_path),
        salt=create_salt(salt_path),
        seeded=seeded,
    )
