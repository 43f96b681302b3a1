"""The report, opened in a real browser: it renders, runs nothing, and prints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.report import write
from tests.support.browser import browse, needed, picture
from tests.support.reports import image_report, table_report

pytestmark = [pytest.mark.slow, needed]


def test_the_style_applies_and_the_pictures_load(tmp_path):
    page = write(image_report(rounds=6), tmp_path)
    shot = picture(tmp_path, page, 1500)
    assert shot.shape == (1500, 1280, 3)
    # Margins are white: the page is centred in 1160 pixels, so the style was allowed.
    assert (shot[:, :40] == 255).all()
    assert (shot[:, -40:] == 255).all()
    # The head of the page holds the blue of the model's own line, the tinted tiles and dark text.
    assert (np.abs(shot - np.array([10, 92, 143])).max(axis=-1) <= 6).sum() > 100
    assert (np.abs(shot - np.array([244, 246, 248])).max(axis=-1) == 0).sum() > 10_000
    # Scans: large black squares in the right half of the head.
    assert (shot[200:700, 640:].max(axis=-1) < 12).mean() > 0.05


def test_nothing_sticks_out_of_a_laptop(tmp_path):
    report = table_report(rounds=100)
    shot = picture(tmp_path, write(report, tmp_path), 6500)
    assert (shot[:, -30:] == 255).all()
    dark_rows = np.flatnonzero((shot.min(axis=-1) < 100).any(axis=1))
    assert dark_rows.max() > 4500


def test_a_hostile_name_runs_nothing(tmp_path):
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    base = image_report(rounds=2)
    report = replace(base, name=attack, data_note=attack, config=attack, engine=attack)
    tree = browse(tmp_path, write(report, tmp_path), "--dump-dom")
    assert "<title>&lt;script&gt;document.title='owned'" in tree
    assert "<title>owned" not in tree
    assert tree.count("<script") == 0


def test_the_policy_stops_what_would_slip_through(tmp_path):
    """Plants what escaping prevents: the policy alone stops it, and without the policy it runs."""
    page = write(image_report(rounds=2), tmp_path)
    html = page.read_text(encoding="utf-8")
    planted = html.replace("</body>", "<script>document.title='owned'</script></body>")
    page.write_text(planted, encoding="utf-8")
    assert "<title>owned" not in browse(tmp_path, page, "--dump-dom")
    page.write_text(planted.replace("Content-Security-Policy", "X-Nothing"), encoding="utf-8")
    assert "<title>owned" in browse(tmp_path, page, "--dump-dom")


def test_it_prints(tmp_path):
    page = write(image_report(rounds=6), tmp_path)
    target = tmp_path / "report.pdf"
    browse(tmp_path, page, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert (
        4
        <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") + content.count(b"/Type /Page/")
        <= 14
    )
