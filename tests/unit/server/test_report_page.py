"""The page is one file that fetches and runs nothing, escapes everything, and is written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from server.report import Attendance, ModelFacts, RejectedRow, Report, Timings, page, render, write
from server.report.verdict import verdict
from tests.support.reports import (
    curves,
    image_report,
    panels,
    participation,
    privacy,
    table_report,
    unprotected_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "<script>document.title='owned'</script>"


class Page(HTMLParser):
    """Reads a page: tags with attributes, text, and whether everything that opens closes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open, self.style = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, *names):
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]


@pytest.fixture(scope="module")
def image():
    return image_report(rounds=6)


@pytest.fixture(scope="module")
def image_html(image):
    return render(image)


@pytest.fixture(scope="module")
def table_html():
    return render(table_report())


@pytest.fixture(scope="module")
def unprotected_html():
    return render(unprotected_report())


@pytest.fixture(params=["image_html", "table_html", "unprotected_html"])
def html(request):
    return request.getfixturevalue(request.param)


def figures(html):
    """Return the SVG texts of a page."""
    uris = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    return [base64.b64decode(uri).decode() for uri in uris]


# --- self-contained -------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_runs(html):
    parsed = Page(html)
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "form",
        "base",
        "svg",
    }
    assert all(
        value.startswith(("data:image/", "#")) for value in parsed.values("src", "href", "srcset", "action")
    )
    assert not [
        name for _, attrs in parsed.tags for name in attrs if name.startswith("on") or name == "style"
    ]
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_images_and_this_one_style_alone(html):
    parsed = Page(html)
    policies = [
        a["content"]
        for t, a in parsed.tags
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    # The policy must stand before anything it governs.
    tags = [tag for tag, _ in parsed.tags]
    assert tags[:4] == ["html", "head", "meta", "meta"]


def test_figures_hold_no_address_but_names_of_xml(html):
    assert figures(html)
    for svg in figures(html):
        addresses = set(re.findall(r'https?://[^"\s<]+', svg))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert not re.search(r'href="(?!#|data:image/png)', svg)
        assert "<script" not in svg
        assert "<metadata" not in svg


def test_every_picture_has_words_for_those_who_cannot_see_it(html):
    assert all(attrs.get("alt") for tag, attrs in Page(html).tags if tag == "img")


def test_links_lead_somewhere(html):
    parsed = Page(html)
    assert {value[1:] for value in parsed.values("href")} <= set(parsed.values("id"))


def test_the_page_stays_small(html):
    assert len(html) < 3_000_000


def test_the_same_report_gives_the_same_page(image, image_html):
    assert render(image) == image_html


# --- what it says ---------------------------------------------------------------------------------------------


def test_the_verdict_stands_on_the_page(image, image_html):
    text = Page(image_html).text
    for sentence in verdict(image):
        assert sentence.split(".")[0] in text


def test_nobody_is_called_anonymous(html):
    assert "anonym" not in html.lower()


def test_banners(image_html, table_html, unprotected_html):
    assert "NO PRIVACY" not in Page(image_html).text
    assert "SEEDED SIMULATION: NO PRIVACY CLAIM" in Page(table_html).text
    assert "NO PRIVACY. This model was trained without" in Page(unprotected_html).text
    assert 'class="banner bad"' in unprotected_html
    assert 'class="banner caution"' in table_html


def test_seeded_figures_carry_the_stamp(table_html, image_html):
    assert any("no privacy claim" in svg for svg in figures(table_html))
    assert not any("no privacy claim" in svg for svg in figures(image_html))


def test_synthetic_is_inside_every_figure(image, image_html, table_html):
    assert all("synthetic data" in svg for svg in figures(image_html))
    assert "SYNTHETIC DATA" in Page(image_html).text.upper()
    assert not any("synthetic" in svg for svg in figures(table_html))
    real = render(replace(small(), panels=image.panels, synthetic=False, data_note="from a hospital"))
    pngs = set(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", image_html))
    unstamped = set(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", real))
    strips = pngs & unstamped  # colour bars alone have no stamp
    assert len(strips) == 2
    assert len(pngs) > 30


def test_the_source_of_the_data_is_cited(table_html):
    assert Page(table_html).text.count("doi:10.1371/journal.pone.0184661") >= 3


def test_all_arms_stand_in_one_table(table_html, image_html):
    for html, arms in ((table_html, 21), (image_html, 8)):
        tables = re.findall(r'<table class="data (?:arms|across).*?</table>', html, re.S)
        assert len(tables) == 1
        cells = re.findall(r"(?:alone|Predict the mean|no privacy|DP)\b", tables[0])
        assert len(cells) == arms
        assert "best" in tables[0]
        assert "baseline" in tables[0]


def test_differences_to_the_baseline_stand_open_and_the_others_closed(image_html):
    head, _, folded = image_html.partition("<details><summary>Differences between the other arms (30)")
    assert folded
    assert head.count("− Predict the mean") == 15
    assert "− Predict the mean" not in folded


def test_every_round_and_site_has_its_square(table_html):
    report = table_report()
    squares = re.findall(
        r'<td class="(admitted|failed|rejected|late|silent|unasked)" title="([^"]+)"', table_html
    )
    assert len(squares) == 17 * 100
    assert ("rejected", "OLIN, round 1: rejected: not-finite") in squares
    counted = sum(cell.status == "failed" for cell in report.participation)
    assert sum(status == "failed" for status, _ in squares) == counted


def test_a_statement_without_limits_is_marked_as_a_gap(image, image_html):
    empty = replace(small(), privacy=replace(image.privacy, not_covered=()), sites=image.sites)
    bare = render(empty)
    assert "A statement without its limits is incomplete" in bare
    assert "A statement without its limits is incomplete" not in image_html
    assert "Who took part in which round: the server sees it." in image_html


def test_losses_of_sites_are_labelled(image_html):
    assert "in a deployment each hospital sees only its own" in image_html


# --- hostile and odd input ------------------------------------------------------------------------------------


def hostile_report():
    """Return a report in which every text from outside attacks."""
    names = (
        HOSTILE,
        'a" onmouseover="alert(1)',
        "$\\frac{1}{0}$",
        "北京 \u202eevil\x00\n",
        "{{ 7*7 }}",
        "x" * 500,
    )
    cells = participation(names, 4)
    base = image_report(rounds=3)
    return replace(
        base,
        name=HOSTILE,
        engine=HOSTILE,
        created="<b>now</b>",
        sites=names,
        privacy=replace(privacy(names, cells), not_covered=(HOSTILE,)),
        participation=(*cells, Attendance(round=5, site=HOSTILE, status="failed", detail=HOSTILE)),
        rejected=(RejectedRow(round=1, site=HOSTILE, reason=HOSTILE),),
        curves=curves(names, cells),
        results=tuple(
            replace(row, arm=row.arm.replace("site-1", HOSTILE), task=HOSTILE, metric=f"{row.metric}<i>")
            for row in base.results
        ),
        differences=(),
        faults={HOSTILE: HOSTILE},
        panels=replace(panels(scans=2), labels=(HOSTILE, "$x^$")),
        environment={HOSTILE: HOSTILE},
        data_note=HOSTILE,
        config="</pre>" + HOSTILE,
    )


@pytest.fixture(scope="module")
def hostile_html():
    return render(hostile_report())


def test_hostile_texts_are_shown_not_run(hostile_html):
    html = hostile_html
    parsed = Page(html)
    assert parsed.open == []
    assert not [tag for tag, _ in parsed.tags if tag in {"script", "i"}]
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    assert "<script>document.title" not in html
    assert "document.title='owned'" in parsed.text
    assert "{{ 7*7 }}" in parsed.text
    assert "\u202e" not in html
    assert "\x00" not in html
    for svg in figures(html):
        assert "<script" not in svg


def test_figures_stay_well_formed_whatever_the_names(hostile_html):
    from xml.etree import ElementTree as Xml

    assert len(figures(hostile_html)) >= 4
    for svg in figures(hostile_html):
        Xml.fromstring(svg)  # noqa: S314 - our own output


def test_an_empty_run_still_has_a_page():
    report = Report(
        name="nothing",
        created="2026-01-01",
        seed=0,
        engine="local",
        rounds_planned=5,
        rounds_completed=0,
        sites=(),
        model=ModelFacts(family="vae", parameters=0, latent_size=1, input_shape=(3,), sharing="all"),
        privacy=None,
        results=(),
        timings=Timings(wall_s=0.0, train_cpu_s=0.0, overhead_s_per_round=0.0),
        synthetic=False,
        data_note="",
        weights_sha256=None,
    )
    text = Page(render(report)).text
    assert "stopped after 0 of 5 planned rounds" in text
    assert "nothing was evaluated" in text
    assert "none: no model was saved" in text


def test_numbers_that_are_none_do_not_break_the_page(image):
    broken = replace(
        image,
        results=tuple(
            replace(row, value=float("nan"), ci95=(float("nan"), float("inf"))) for row in image.results
        ),
        privacy=replace(
            image.privacy,
            per_site=tuple(replace(row, epsilon_pld=float("inf")) for row in image.privacy.per_site),
        ),
        curves=tuple(replace(row, reconstruction=float("nan"), kl=float("inf")) for row in image.curves),
        panels=replace(image.panels, residual=np.full_like(image.panels.residual, np.nan)),
    )
    text = Page(render(broken)).text
    assert "n/a" in text
    assert "values that were not finite are drawn as zero" in text


def test_a_thousand_sites_fit():
    sites = tuple(f"site-{n}" for n in range(1000))
    cells = participation(sites, 3)
    report = replace(
        table_report(rounds=3),
        sites=sites,
        participation=cells,
        privacy=privacy(sites, cells),
        curves=curves(sites, cells),
        rejected=(),
    )
    html = render(report)
    assert len(html) < 3_000_000
    assert "976 further sites with fewer losses not drawn" in html


# --- writing --------------------------------------------------------------------------------------------------


def small():
    return replace(unprotected_report(), results=(), differences=(), panels=None, curves=(), latents=())


def test_both_files_are_written_and_nothing_else(tmp_path):
    path = write(small(), tmp_path / "deep" / "run")
    assert path == tmp_path / "deep" / "run" / "report.html"
    assert sorted(item.name for item in path.parent.iterdir()) == ["report.html", "report.json"]


def test_a_failure_leaves_the_old_report_whole(tmp_path, monkeypatch):
    write(small(), tmp_path)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(replace(small(), name="another"), tmp_path)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_a_report_that_cannot_be_told_touches_no_file(tmp_path):
    with pytest.raises(ValueError, match="faults"):
        write(replace(small(), faults={"x": object()}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_templates_lie_beside_the_code():
    assert {item.name for item in page._TEMPLATES.iterdir()} == {"report.html.j2", "report.css"}


def test_every_field_of_a_report_reaches_page_or_file(image):
    """A field that is added to Report must be shown: this list is the reminder."""
    known = (
        "name created seed engine simulated rounds_planned rounds_completed sites model privacy results differences "
        "metrics primary rejected participation faults timings weights_sha256 curves latents panels synthetic "
        "data_note environment config attacks"
    )
    assert {field.name for field in fields(image)} == set(known.split())
