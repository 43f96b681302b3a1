"""A browser that hangs once costs one test some seconds; one that always hangs still fails it."""

import stat
import subprocess

import pytest

from tests.support import browser

HANGS_ONCE = """#!/bin/sh
if [ ! -e {mark} ]; then touch {mark}; sleep 60 & wait; fi
echo rendered
"""
HANGS = "#!/bin/sh\nsleep 60 & wait\n"


def stand_in(folder, monkeypatch, script):
    path = folder / "browser"
    path.write_text(script, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(browser, "_BROWSER", str(path))
    monkeypatch.setattr(browser, "_PATIENCE", (0.5, 0.5, 0.5))


def test_a_start_that_hangs_is_killed_and_tried_again(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, HANGS_ONCE.format(mark=tmp_path / "mark"))
    assert browser.browse(tmp_path, tmp_path / "page.html") == "rendered\n"


def test_a_page_that_always_hangs_fails(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, HANGS)
    with pytest.raises(subprocess.TimeoutExpired):
        browser.browse(tmp_path, tmp_path / "page.html")
