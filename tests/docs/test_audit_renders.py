"""The audit in a real browser: it renders, runs nothing, lines up, and its first sheet of paper is the verdict."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from deploy.audit.coverage import departures_of_run
from deploy.audit.write import write
from tests.support.audits import account, as_subject, check, refused, report
from tests.support.browser import browse, needed, picture

BLUE, INK = np.array([10, 92, 143]), np.array([27, 37, 48])
pytestmark = [pytest.mark.slow, needed]


def runs_of(shot, colour, least=100):
    """Return (first, last) column of the longest run of a colour in each row that has one of `least` pixels."""
    found = []
    for row in np.abs(shot - colour).max(axis=-1) <= 3:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        pairs = [
            (start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end - start >= least
        ]
        found += pairs[:1]
    return found


def test_the_bars_are_as_long_as_what_was_spent(tmp_path):
    """Half of the cap is half as long, and all begin at one line: read off the pixels."""
    whole, half = account("whole", counted=3.0, cap=4.0), account("half", counted=1.5, cap=4.0)
    shot = picture(tmp_path, write(report(whole, half, kind="run"), tmp_path), 700)
    runs = runs_of(shot, BLUE)
    starts = {start for start, _ in runs}
    assert max(starts) - min(starts) <= 1
    start = min(starts)
    longest, shorter = max(end for _, end in runs), min(end for _, end in runs if end - start > 100)
    assert (longest - start) / (shorter - start) > 1.5
    ends = sorted({end for _, end in runs})
    assert any(abs((longest - start) / (end - start) - 2.0) < 0.02 for end in ends)


def test_nothing_sticks_out_of_a_laptop(tmp_path):
    sites = [
        account(f"a-hospital-with-a-rather-long-name-{index}", refusals=(refused(),)) for index in range(18)
    ]
    shot = picture(tmp_path, write(report(*sites, kind="run"), tmp_path), 9000)
    assert (shot[:, :30] == 255).all()
    assert (shot[:, -30:] == 255).all()


def test_it_reads_on_a_phone(tmp_path):
    shot = picture(tmp_path, write(report(), tmp_path), 1200, width=500)
    assert (shot[:900, -8:] == 255).all()


def test_a_hostile_name_runs_nothing(tmp_path):
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    made = as_subject(report(account(attack)), name=attack, source=attack, data=attack)
    tree = browse(tmp_path, write(made, tmp_path), "--dump-dom")
    assert "<title>&lt;script&gt;document.title='owned'" in tree
    assert "<title>owned" not in tree
    assert tree.count("<script") == 0


def test_the_policy_stops_what_would_slip_through(tmp_path):
    """Plants what escaping prevents: the policy alone stops it, and without the policy it runs."""
    page = write(report(), tmp_path)
    html = page.read_text(encoding="utf-8")
    planted = html.replace("</body>", "<script>document.title='owned'</script></body>")
    page.write_text(planted, encoding="utf-8")
    assert "<title>owned" not in browse(tmp_path, page, "--dump-dom")
    page.write_text(planted.replace("Content-Security-Policy", "X-Nothing"), encoding="utf-8")
    assert "<title>owned" in browse(tmp_path, page, "--dump-dom")


@pytest.mark.parametrize("number", [1, 4, 6, 18])
def test_the_verdict_is_the_first_sheet_of_paper(tmp_path, number):
    """However many sites, and with the longest sentences that a real audit has."""
    sites = [account(f"hospital-{index}", demonstrated=0.4, refusals=(refused(),)) for index in range(number)]
    base = report(*sites, kind="run")
    made = replace(
        base,
        evidence=replace(
            base.evidence, origin="Made by this audit, in a job of its own, and so on at length. " * 4
        ),
        departures=(*base.departures, *departures_of_run(sites[:2], has_plain_arms=True)),
        checks=(
            *base.checks,
            check("not-provided", name="second-verifier"),
            check("attention", name="libraries"),
        ),
    )
    page = write(made, tmp_path)
    assert sheets(tmp_path, page, '<section id="verdict"', '<section id="left"') == 1


def sheets(folder, page, begin, end):
    """Return how many sheets of A4 the part of a page from `begin` to `end` takes."""
    html = page.read_text(encoding="utf-8")
    start, stop = html.index(begin), html.index(end)
    head = html[: html.index('<div class="first">')]
    top = html[html.index('<div class="first">') : start]
    alone = folder / "alone.html"
    # Alone, the sheet must not be followed by an empty one, so its forced break is taken away.
    part = html[start:stop].replace("<main>", "")
    alone.write_text(
        head + top.replace('class="first"', 'class="first alone"') + part + "</body></html>", encoding="utf-8"
    )
    target = folder / "alone.pdf"
    browse(folder, alone, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    return pages(target.read_bytes())


def pages(content):
    """Return the number of pages of a PDF."""
    texts = [content]
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, flags=re.DOTALL):
        try:
            texts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return max(len(re.findall(rb"/Type\s*/Page\b(?!s)", text)) for text in texts)


def test_it_prints(tmp_path):
    page = write(report(), tmp_path)
    target = tmp_path / "audit.pdf"
    browse(tmp_path, page, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert 4 <= pages(content) <= 14
