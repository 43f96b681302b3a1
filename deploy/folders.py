"""Where things that belong to a user, not to a run, lie."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "FEDERATED_VAE_CACHE"


def cache_folder() -> Path:
    """Return the folder of fetched tables and prepared records; the environment may name another one."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("federated-vae")
