"""Running checks: all of them, whatever one does; deadlines; what needs what. And how findings are shown."""

import json
import threading
import time

import pytest

from deploy.doctor.checks import check
from deploy.doctor.findings import Finding, Severity, error, note, ok, warning
from deploy.doctor.registry import CHECKS, choose, table
from deploy.doctor.report import render, to_dict, worst_first
from deploy.doctor.running import examine
from deploy.errors import ConfigError
from tests.support.doctors import visit


def made(name, *said, needs=(), on_line=False, does=None, at_least_s=0.0):
    """Return a check that says something, or does something instead."""

    def look(visit):
        if does is not None:
            does()
        yield from said or (ok("fine"),)

    given = {"asks": "It.", "worst": Severity.ERROR, "way_out": "That."}
    return check(name, needs=needs, on_line=on_line, at_least_s=at_least_s, **given)(look)


def raises():
    raise ValueError("patient MRN-77001 of /data/mueller.nii")


@pytest.fixture
def there(tmp_path):
    return visit(tmp_path, timeout_s=0.3)


def severities(found):
    return {each.id: each.severity.value for each in found}


def test_all_checks_run_in_their_order(there):
    found = examine(there, [made("a.a"), made("b.b", note("x"), warning("y", "z")), made("c.c")])
    assert [(each.id, each.severity) for each in found] == [
        ("a.a", "ok"),
        ("b.b", "note"),
        ("b.b", "warning"),
        ("c.c", "ok"),
    ]


def test_one_that_raises_is_an_error_without_its_text(there):
    found = examine(there, [made("a.a", does=raises), made("b.b")])
    assert severities(found) == {"a.a": "error", "b.b": "ok"}
    assert found[0].found == "this check broke off with ValueError"
    assert "77001" not in str(found)
    assert "mueller" not in str(found)


def test_where_it_raised_is_told_to_whoever_asks(there, monkeypatch, capsys):
    examine(there, [made("a.a", does=raises)])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FEDERATED_VAE_TRACEBACK", "1")
    examine(there, [made("a.a", does=raises)])
    assert "in raises" in capsys.readouterr().err


def test_one_that_hangs_is_given_up_and_the_others_run(there):
    release = threading.Event()
    start = time.monotonic()
    found = examine(there, [made("a.a", does=lambda: release.wait(30)), made("b.b")])
    took = time.monotonic() - start
    release.set()
    assert severities(found) == {"a.a": "error", "b.b": "ok"}
    assert "did not come to an end within 0.3 s" in found[0].found
    assert "--only a.a --timeout 60" in found[0].fix
    assert 0.25 < took < 5
    hung = [thread for thread in threading.enumerate() if thread.name == "a.a"]
    assert all(thread.daemon for thread in hung), "it must not hold up the end of the process"


def test_a_slow_check_has_its_own_deadline(there):
    found = examine(there, [made("a.a", does=lambda: time.sleep(0.6), at_least_s=5.0)])
    assert severities(found) == {"a.a": "ok"}


def test_what_rests_on_something_that_failed_is_skipped(there):
    checks = [
        made("a.a", error("x", "y")),
        made("b.b", needs=("a.a",)),
        made("c.c", needs=("b.b",)),
        made("d.d", warning("x", "y"), error("x", "y")),
        made("e.e", needs=("d.d",)),
        made("f.f", needs=("not.run",)),
    ]
    found = examine(there, checks)
    assert [each.severity.value for each in found if each.id != "d.d"] == [
        "error",
        "skipped",
        "skipped",
        "ok",
        "ok",
    ]
    assert found[1].found == "needs a.a"


def test_without_the_section_what_needs_it_is_skipped_and_says_why(there):
    found = examine(there, CHECKS[:8])
    assert {(each.severity, each.found) for each in found} == {
        (Severity.SKIPPED, "site.yaml has no section `connection`")
    }
    assert len(found) == 8


def test_a_check_that_needs_the_section_must_say_so(there):
    with pytest.raises(RuntimeError, match="is to be marked so"):
        _ = there.connection


# --- which ones -------------------------------------------------------------------------------------------


def test_every_check_has_a_name_of_its_own_and_needs_earlier_ones():
    ids = [each.id for each in CHECKS]
    assert len(set(ids)) == len(ids)
    for place, each in enumerate(CHECKS):
        assert set(each.needs) <= set(ids[:place])
        assert each.asks.endswith(".")
        assert each.way_out.endswith(".")


def test_some_of_them_by_name_or_group():
    assert [each.id for each in choose(["tls.chain", "net.dns"])] == ["net.dns", "tls.chain"]
    assert [each.id for each in choose(["net"])] == ["net.dns", "net.tcp", "net.proxy"]
    assert choose([]) == CHECKS


def test_no_such_check_names_every_wrong_one():
    with pytest.raises(ConfigError) as caught:
        choose(["net.dnss", "net.dns", "nix"])
    assert [(problem.path, problem.suggestion) for problem in caught.value.problems] == [
        ("net.dnss", "net.dns"),
        ("nix", ""),
    ]


def test_the_table_has_a_row_for_each():
    assert len(list(table())) == len(CHECKS) + 2


# --- how they are shown -----------------------------------------------------------------------------------

FINDINGS = [
    Finding(id="a.first", severity=Severity.OK, found="All is well."),
    Finding(id="b.b", severity=Severity.WARNING, found="Not so well. " * 9, fix="do /a/very/long/path " * 6),
    Finding(id="c.c", severity=Severity.SKIPPED, found="Not looked at."),
    Finding(id="d.d", severity=Severity.ERROR, found="Bad\x1b[2J", fix="mend it"),
    Finding(id="e.e", severity=Severity.NOTE, found="By the way."),
    Finding(id="f.f", severity=Severity.ERROR, found="Worse.", fix="mend that"),
]


def test_the_worst_comes_first():
    assert [each.id for each in worst_first(FINDINGS)] == ["d.d", "f.f", "b.b", "e.e", "c.c", "a.first"]


@pytest.mark.parametrize("columns", [80, 120])
def test_as_text(there, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render(there, FINDINGS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[:3] == [
        "error    d.d      Bad\N{REPLACEMENT CHARACTER}[2J",
        "                  -> mend it",
        "error    f.f      Worse.",
    ]
    assert lines[-1] == "site-2: NOT READY (2 errors, 1 warning, 1 note, 1 skipped, 1 ok)"
    assert render(there, FINDINGS[:3]).splitlines()[-1] == "site-2: no errors (1 warning, 1 skipped, 1 ok)"
    assert all(line[:18].isspace() or line[8] == " " != line[18] for line in lines[:-2]), (
        "columns are aligned"
    )


def test_as_json(there):
    document = json.loads(json.dumps(to_dict(there, FINDINGS)))
    assert (document["format"], document["site"], document["ready"]) == (1, "site-2", False)
    assert document["totals"] == {"error": 2, "warning": 1, "note": 1, "skipped": 1, "ok": 1}
    assert [each["id"] for each in document["findings"]] == [each.id for each in worst_first(FINDINGS)]
    assert to_dict(there, FINDINGS[:3])["ready"]
