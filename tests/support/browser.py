"""A page in headless Chromium, each time with a fresh profile.

Chromium was seen to never return on a loaded machine, from a page that renders in a second the next time.
Such a start is killed with all its processes and tried again; a page that always hangs still fails its test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--virtual-time-budget=10000", "--run-all-compositor-stages-before-draw"),
    "--force-device-scale-factor=1",
)
_PATIENCE = (60.0, 60.0, 120.0)  # seconds of each attempt

needed = pytest.mark.skipif(
    _BROWSER is None, reason="no chromium on this machine: install it to see pages rendered"
)


def browse(folder: Path, page: Path, *flags: str) -> str:
    """Run the browser on a page and return what it printed."""
    for seconds in _PATIENCE[:-1]:
        try:
            return _attempt(folder, page, flags, seconds)
        except subprocess.TimeoutExpired:
            continue
    return _attempt(folder, page, flags, _PATIENCE[-1])


def picture(folder: Path, page: Path, height: int, width: int = 1280) -> np.ndarray:
    """Return the page as [H, W, 3], integers 0 to 255."""
    target = folder / "page.png"
    browse(folder, page, f"--screenshot={target}", f"--window-size={width},{height}")
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


def _attempt(folder: Path, page: Path, flags: tuple[str, ...], seconds: float) -> str:
    assert _BROWSER is not None
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PATH": os.environ["PATH"]}
    with tempfile.TemporaryDirectory(dir=folder, prefix="profile-", ignore_cleanup_errors=True) as profile:
        command = [_BROWSER, *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=home,
            start_new_session=True,
        ) as browser:
            try:
                printed, said = browser.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(browser.pid, signal.SIGKILL)
                raise
    assert browser.returncode == 0, said[-2000:]
    return printed
