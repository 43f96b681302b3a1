"""The page: nothing is left out, nothing runs, nothing from outside is trusted, and bars mean what they show."""

import dataclasses
import html
import re
from base64 import b64decode

import pytest

from deploy.audit import bars
from deploy.audit.document import Evidence
from deploy.audit.page import MAX_TOLD, ROOM_FOR, render
from privacy.coverage import Quantity
from tests.support.audits import account, as_subject, check, refused, report


@pytest.fixture(scope="module")
def page():
    return render(report(account(refusals=(refused(),), demonstrated=0.4)))


def words(page):
    """Return what a person reads."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_same_report_gives_the_same_bytes(page):
    assert render(report(account(refusals=(refused(),), demonstrated=0.4))) == page


def test_nothing_runs_and_nothing_is_fetched(page):
    assert "<script" not in page
    assert re.findall(r"(?:src|href)=\"(?!data:image/svg\+xml;base64,|#)", page) == []
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in html.unescape(page)
    assert " style=" not in page


def test_text_from_outside_is_escaped():
    attack = "<script>alert(1)</script>"
    made = report(account(site=attack), checks=(check("violated", text=attack, site=attack),))
    page = render(as_subject(made, name=attack, source=attack, data=attack))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("quantity", list(Quantity))
def test_every_quantity_is_on_the_page(page, quantity):
    assert quantity.value.replace("-", " ").capitalize() in words(page)


def test_every_question_is_on_the_page_and_in_amber(page):
    amber = words(page[page.index('<div class="fill">') :])
    for gap in report().gaps:
        assert gap.question in amber
        assert gap.why in amber


def test_every_disclosure_is_on_the_page():
    made = report()
    assert len(made.disclosures) == 21
    page = words(render(made))
    for row in made.disclosures:
        assert row.item in page
        if row.answer:
            assert re.sub(r"\s+", " ", row.answer) in page
    assert page.count("not provided") >= sum(row.answer is None for row in made.disclosures)


SECTIONS = ("verdict", "left", "accounts", "attacks", "checks", "ledger", "utility", "nist", "people")


@pytest.mark.parametrize("section", SECTIONS)
def test_no_section_is_left_out_because_it_is_empty(section):
    empty = report(
        sites=(), departures=(), evidence=Evidence(), utility=None, proofs=(), checks=(check("violated"),)
    )
    page = render(empty)
    assert f'<section id="{section}"' in page
    if section in ("left", "accounts", "ledger", "utility"):
        start = page.index(f'<section id="{section}"')
        assert 'class="gap">Not provided' in page[start : page.index("</section>", start)]


def test_attacks_that_were_not_made_are_in_amber():
    page = render(report(evidence=Evidence()))
    assert page.count('<td class="missing" colspan="7">not provided</td>') == 3


def test_every_check_that_is_not_in_order_is_told_in_full():
    checks = [check("ok", site="a", text="Fine at a.")]
    checks += [
        check("attention", site=f"h{index}", text=f"Odd at h{index}.") for index in range(MAX_TOLD + 2)
    ]
    page = words(render(report(checks=tuple(checks))))
    assert all(f"Odd at h{index}." in page for index in range(MAX_TOLD))
    assert "2 more in audit.json. In order at 1 site." in page


def test_seeded_figures_are_stamped_and_grey():
    page = render(report(account(claims="seeded"), kind="run"))
    assert "no privacy claim" in page
    assert "What the plan would have spent, against the cap" in page
    assert bars.BLUE not in pictures(page)[0]


def test_other_deltas_are_said():
    page = words(render(report(account("a"), account("b", delta=1e-6), kind="run")))
    assert "epsilon, each at its own δ" in page


def test_the_sites_that_spent_most_are_drawn():
    sites = [account(f"h{index:02d}", counted=0.1 * (index + 1)) for index in range(bars.MAX_SITES + 3)]
    page = render(report(*sites, kind="run"))
    assert page.count('class="site-bar"') == bars.MAX_SITES
    assert "3 further sites that spent less not drawn" in words(page)
    assert '<div class="who">h00</div>' not in page
    assert "bars-of-sites dense" in page
    assert "bars-of-sites dense" not in render(report(*sites[:ROOM_FOR], kind="run"))


# --- the bars -----------------------------------------------------------------------------------------------


def pictures(page):
    """Return the SVG texts of a page."""
    return [b64decode(text).decode() for text in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def parts(site, axis=None):
    return bars.bar(site, axis or bars.Axis(most=4.0, step=1.0))


def at(epsilon):
    return f"{bars.Axis(most=4.0, step=1.0).at(epsilon):.1f}"


def test_a_bar_ends_where_the_spending_ends():
    # 480 wide, 6 and 16 of margin: epsilon 2.7 of 4 lies at 6 + 458 x 2.7 / 4 = 315.15.
    assert at(2.7) == "315.2"
    drawn = parts(account())
    assert f'<rect x="6.0" y="8.0" width="{float(at(2.7)) - 6:.1f}"' in drawn
    assert f'<path d="M{at(3.0)} 3V33"' in drawn
    assert f'<circle cx="{at(0.86 * 2.7)}"' in drawn


def test_reserved_work_is_hatched_and_solid_before():
    site = account()
    half = dataclasses.replace(site, cohorts=(dataclasses.replace(site.cohorts[0], settled=2.0),))
    drawn = parts(half)
    assert 'fill="url(#h)"' in drawn
    assert f'<rect x="6.0" y="8.0" width="{float(at(2.0)) - 6:.1f}"' in drawn
    assert 'fill="url(#h)"' not in parts(site)


def test_no_cap_has_no_line():
    assert bars.INK not in parts(account(cap=None))


def test_refused_work_is_marked_once_and_at_the_end_of_the_axis_at_most():
    drawn = parts(account(refusals=(refused(), refused(round_=12))))
    assert drawn.count(bars.VERMILION) == 1
    far = parts(account(refusals=(refused(needed=99.0),)))
    assert f"M{float(at(4.0)) - 4.5:.1f}" in far
    assert bars.VERMILION not in parts(account(refusals=(refused(needed=None),)))


def test_what_an_attack_showed_is_joined_to_what_is_proved():
    drawn = parts(account(demonstrated=0.4))
    assert f'<path d="M{at(0.4)} 37.0H{at(0.86 * 2.7)}v-5"' in drawn
    assert bars.GREEN not in parts(account())


def test_an_axis_holds_every_cap_and_has_few_ticks():
    for most in (0.01, 0.7, 3.0, 8.0, 44.0, 900.0):
        axis = bars.axis_of([account(counted=0.4 * most, cap=most)])
        assert axis.most >= most
        assert 3 <= axis.most / axis.step <= 10


def test_an_axis_of_nothing_spent():
    axis = bars.axis_of([account(counted=0.0, cap=None)])
    assert axis.most > 0
    assert parts(account(counted=0.0, cap=None), axis)


def test_an_infinite_epsilon_does_not_break_the_page():
    site = account(counted=float("inf"), cap=3.0)
    assert "∞" in words(render(report(site)))
