"""The parts of `python -m deploy ledger`: words for every kind and code, one line for every error, refusals by name."""

import dataclasses
import json
import sqlite3
from pathlib import Path

import pytest
import typer

from deploy.errors import ConfigError, EngineError, Problem
from deploy.ledger import account, beginning, failures, listing, opening, proofs, wording
from deploy.ledger.changes import _approval
from deploy.ledger.failures import DamagedError, UnmetError, UsageError, exit_code, one_line, reported
from deploy.ledger.refusals import REFUSALS, UNKNOWN, explain_refusal
from deploy.ledger.standing import left, policy_notes, spent_by_cohort
from deploy.ledger.studies import studies_of
from deploy.site import load_site
from privacy import roster
from privacy.accounting import Release
from privacy.administration import cap_request, change_cap, note_incident, release_model, set_patients
from privacy.entries import KINDS
from privacy.errors import (
    AccountingError,
    LedgerError,
    PlanError,
    RefusalCode,
    RefusedError,
    SigningError,
    TamperedError,
)
from privacy.filters import FixedPlan, RenyiFilter, choose_order
from privacy.signing import generate_key
from tests.support.audits import SITE_YAML
from tests.support.ledger_cases import RULE, approvals, hospital, raw, work
from vae.data.toy import ToySpec, open_toy
from vae.errors import DataError

SCHEDULE = FixedPlan(
    schedule=(Release(sampling_probability=0.1, noise_multiplier=2.0, steps=20),), epsilon=8.0, delta=1e-5
)


@pytest.fixture
def busy(tmp_path):
    """A ledger with an entry of every kind: two studies, one of them refused, a new cohort, a raised cap, a new key."""
    made = hospital(tmp_path)
    made.pay(work(1))
    made.reserve(work(2))
    made.ledger.refuse(work(3, "evil\x1b[2J\n"), RefusalCode.POLICY_MODEL)
    change_cap(made.ledger, 9.0, approvals(made.approvers[:2], cap_request(made.ledger, 9.0)))
    set_patients(made.ledger, ("anna", "bob", "emil"))
    made.ledger.rotate_key(generate_key())
    release_model(made.ledger, run="study", round_=1, model="e" * 64, audience="public")
    note_incident(made.ledger, "key-lost", "IT-1")
    made.ledger.close()
    return made


@pytest.fixture
def book(busy):
    return opening.read_book(busy.path)


@pytest.fixture
def site(tmp_path):
    """Write a hospital's file; return its path."""

    def write(**changes):
        text = SITE_YAML.format(cap=8, model="a" * 64)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "site.yaml"
        file.write_text(text)
        return file

    return write


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (ConfigError("site.yaml", [Problem(path="a", rule="must be b")]), 2),
        (ConfigError("site.yaml", [Problem(path="a", rule="must be b")] * 2), 2),
        (SigningError("x"), 2),
        (PlanError("x", ["y"]), 2),
        (UnmetError("x"), 3),
        (DamagedError("x"), 3),
        (TamperedError(3, "x"), 3),
        (RefusedError(RefusalCode.FORKED), 3),
        (DataError("x"), 5),
        (LedgerError("x"), 1),
        (AccountingError("x"), 1),
        (EngineError("x"), 1),
        (OSError(13, "Permission denied", "/x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(error, code, capsys):
    assert exit_code(error) == code
    with pytest.raises(typer.Exit) as ended, reported():
        raise error
    assert ended.value.exit_code == code
    printed = capsys.readouterr().err
    problems = len(error.problems) if isinstance(error, ConfigError) else 1
    assert printed.count("\n") == (1 if problems == 1 else 1 + problems)


def test_lines_name_the_thing_the_rule_and_the_way_out():
    assert one_line(TamperedError(7, "it is older")).startswith(
        "entry 7: it is older; the ledger is not what was"
    )
    assert one_line(OSError(13, "Permission denied", "/x")) == (
        "/x: Permission denied; check the path, its rights and the disk"
    )
    assert "ZeroDivisionError: x; this is a defect of the software, not yours" in one_line(
        ZeroDivisionError("x")
    )


def test_nothing_in_a_line_steers_the_terminal():
    assert one_line(UsageError("a\n\x1b[2Jb")) == "a \N{REPLACEMENT CHARACTER}[2Jb"


def test_whoever_mends_a_defect_can_see_where_it_is(monkeypatch):
    monkeypatch.setenv(failures.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_a_closed_pipe_is_left_to_the_shell():
    with pytest.raises(BrokenPipeError), reported():
        raise BrokenPipeError


# --- words ----------------------------------------------------------------------------------------------


def test_every_refusal_is_explained():
    assert set(REFUSALS) == set(RefusalCode)
    assert len(set(REFUSALS.values())) == len(RefusalCode)
    assert all(sentence.endswith(".") for sentence in REFUSALS.values())
    assert explain_refusal("budget-exhausted").startswith(
        "It would have taken what is spent on a patient over"
    )
    assert explain_refusal("of-the-future") == UNKNOWN


def test_every_kind_of_entry_is_described(book):
    assert set(wording.DESCRIPTIONS) == set(KINDS) == {entry.kind for entry in book.entries}
    by_number = dict(enumerate(book.entries))
    said = [wording.describe(entry, by_number) for entry in book.entries]
    assert said[0] == "hospital: cap epsilon 8 at delta 0.00001, order 4"
    assert said[1] == "study, round 1: 4 steps, q 1, noise 2.828; charged to c0"
    assert said[2] == f"study, round 1: 4 of 4 steps done, update {'a' * 10}… may leave"
    assert (
        said[4]
        == "evil\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}, round 3: refused, model-not-allowed"
    )
    assert said[5].startswith("cap from epsilon 8 to 9, approved by ")
    assert said[6] == "new patients, as cohort c1: nothing spent on them"
    assert said[7].startswith("from the next entry on, key ")
    assert said[8] == f"study, round 1: model {'e' * 10}… given to the public"
    assert said[9] == "key-lost, ticket IT-1"


def test_a_commit_by_itself_names_its_reservation(book):
    assert wording.describe(book.entries[2], {}) == f"of entry 1: 4 steps done, update {'a' * 10}… may leave"


@pytest.mark.parametrize(
    ("value", "text"), [(8.0, "8"), (0.1, "0.1"), (3.1234567, "3.1234567"), (1e6, "1e+06")]
)
def test_figures_that_people_set_are_never_rounded(value, text):
    assert wording.exact(value) == text
    assert float(text) == value


def test_times_beyond_the_calendar_are_shown_as_they_are():
    assert wording.moment(0) == "1970-01-01 00:00"
    assert wording.moment(2**53 - 1) == f"{2**53 - 1} s"


def test_text_is_wrapped_and_commands_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    item, command = "- " + "word " * 30, "    " + "word " * 30
    lines = wording.fill([item, "", command]).splitlines()
    assert lines[1].startswith("  word")
    assert max(map(len, lines[:-1])) <= 60
    assert lines[-2:] == ["", command]


def test_commands_can_be_copied_into_a_shell():
    assert wording.command("show", "--site", "my site.yaml") == (
        "    python -m deploy ledger show --site 'my site.yaml'"
    )


# --- where a ledger stands ------------------------------------------------------------------------------


def test_spent_and_left_by_the_ledgers_rule(book):
    """Two rounds of 1 nat at order 4, by cap 9: epsilon 2 + ln(3/4) - (ln 1e-5 + ln 4) / 3 = 5.087862."""
    cost = spent_by_cohort(book.state)["c0"]
    assert cost.counted == pytest.approx(5.087862, abs=1e-6)
    assert cost.pld < cost.rdp < cost.counted
    assert left(book.state, cost.counted) == pytest.approx(9 - 5.087862, abs=1e-6)
    assert spent_by_cohort(book.state)["c1"].counted == 0


def test_nothing_is_left_of_a_schedule_that_was_ended(tmp_path):
    made = hospital(tmp_path, rule=SCHEDULE)
    change_cap(made.ledger, 7.0)
    assert left(made.ledger.state(), 0.0) == 0
    text = listing.render(opening.read_book(made.path), None, [])
    assert "The schedule was ended by lowering the cap: nothing more can run." in text


def test_a_policy_below_the_ledger_is_said_with_the_way_out(site, book):
    file = site(**{"epsilon: 8, delta: 1.0e-5": "epsilon: 3, delta: 1.0e-6"})
    notes = list(policy_notes(load_site(file), file, book.state))
    assert "allows epsilon 3, and the cap of the ledger is 9. The smaller one holds for all work" in notes[0]
    assert notes[1] == f"    python -m deploy ledger cap --site {file} --to 3"
    assert "has delta 0.000001, and this ledger counts at 0.00001 for good" in notes[2]


def test_a_policy_that_allows_as_much_needs_no_note(site, book):
    file = site()
    state = dataclasses.replace(book.state, cap=8.0)
    assert list(policy_notes(load_site(file), file, state)) == []


def test_lowering_ends_a_schedule_and_the_note_says_so(site, tmp_path):
    made = hospital(tmp_path, rule=SCHEDULE)
    file = site(**{"lifetime: {epsilon: 8": "lifetime: {epsilon: 3"})
    notes = list(policy_notes(load_site(file), file, made.ledger.state()))
    assert "lower the ledger's cap (which ends its schedule for good)" in notes[0]
    assert notes[1].endswith("--to 3 --yes")


def test_studies_are_gathered_with_what_was_refused(book):
    study, evil = studies_of(book)
    assert (study.run, study.rounds, study.unfinished, study.cohorts) == ("study", {1, 2}, 1, ["c0"])
    assert (evil.rounds, dict(evil.refusals)) == (set(), {"model-not-allowed": 1})


# --- beginning ------------------------------------------------------------------------------------------


def test_the_order_serves_the_loosest_plan_of_the_policy(site):
    rule = beginning.rule_of(load_site(site()))
    loosest = Release(sampling_probability=0.1, noise_multiplier=0.8, steps=1)
    assert (
        rule.order
        == choose_order(epsilon=8, delta=1e-5, release=loosest)
        != choose_order(epsilon=8, delta=1e-5)
    )


def test_an_order_that_is_given_stays(site):
    rule = beginning.rule_of(load_site(site(**{"policy:": "rule: {kind: renyi-filter, order: 7}\npolicy:"})))
    assert rule.order == 7


def test_a_rule_under_which_nothing_could_run_is_refused_before_it_is_fixed():
    with pytest.raises(
        UnmetError, match=r"rule.order: at order 2 and delta 0.00001 a cap of epsilon 1 pays for nothing"
    ):
        beginning._require_affordable(RenyiFilter(epsilon=1.0, delta=1e-5, order=2))
    with pytest.raises(
        UnmetError, match=r"rule.schedule: the schedule spends epsilon .* the cap is 0.1; take fewer"
    ):
        beginning._require_affordable(dataclasses.replace(SCHEDULE, epsilon=0.1))
    beginning._require_affordable(RULE)
    beginning._require_affordable(SCHEDULE)


def test_too_few_and_too_many_patients_are_refused_without_a_count(site):
    data = open_toy(ToySpec(sites=3, patients_per_site=60, features=6), site=1)
    everybody = len({*data.train.patients, *data.test.patients})
    few = load_site(site(**{"min_patients: 10": f"min_patients: {data.train.num_patients + 1}"}))
    with pytest.raises(
        UnmetError, match=r"policy.min_patients: the cohort has fewer patients than the"
    ) as caught:
        beginning.require_policy(few, data, enough=True)
    assert f" {data.train.num_patients} " not in str(caught.value)
    beginning.require_policy(few, data, enough=False)
    exact = load_site(site(**{"patients_bound: 10000": f"patients_bound: {everybody}"}))
    beginning.require_policy(exact, data, enough=True)
    many = load_site(site(**{"patients_bound: 10000": f"patients_bound: {everybody - 1}"}))
    with pytest.raises(
        UnmetError, match=f"policy.patients_bound: there are more patients than the {everybody - 1}"
    ):
        beginning.require_policy(many, data, enough=True)


def test_a_ledger_is_named_so_that_others_find_it(site):
    file = site(**{"ledger.sqlite": "ledger.db"})
    with pytest.raises(UsageError, match=r"ledger: ledger.db: must end in .sqlite"):
        beginning.begin(file, file.parent)


def test_a_lost_salt_is_not_replaced_beside_another_ledger(site, tmp_path):
    hospital(tmp_path, name="other.sqlite")
    with pytest.raises(
        UsageError, match=r"salt: .* is missing, and with a new one nobody would be known .*other.sqlite"
    ):
        beginning.begin(site(), tmp_path)


# --- files ----------------------------------------------------------------------------------------------


def test_a_ledger_is_named_in_one_way(tmp_path, site):
    with pytest.raises(UsageError, match="which ledger"):
        opening.choose(None, None)
    with pytest.raises(UsageError, match="which ledger"):
        opening.choose(tmp_path, tmp_path)
    with pytest.raises(UsageError, match=r"none.sqlite: there is no such file"):
        opening.choose(tmp_path / "none.sqlite", None)
    with pytest.raises(
        UsageError, match="there is no ledger yet; begin one: python -m deploy ledger init --site"
    ):
        opening.choose(None, site())


def test_an_export_reads_back_as_the_ledger_without_patients(busy, book, tmp_path):
    with raw(busy.path) as connection:
        pseudonyms = roster.read(connection).keys()
    assert len(pseudonyms) == 5
    file = tmp_path / "export.jsonl"
    opening.write_new(file, opening.export_lines(book.rows))
    again = opening.read_book(file)
    assert (again.rows, again.entries) == (book.rows, book.entries)
    assert opening.read_copy(file).roster is None
    assert not any(name.hex() in file.read_text() for name in pseudonyms)


def test_a_line_that_is_no_entry_is_named_by_its_number(book, tmp_path):
    lines = opening.export_lines(book.rows).splitlines(keepends=True)
    for broken in ("{}\n", "not json\n", lines[3].replace('signature": "', 'signature": "X')):
        file = tmp_path / "export.jsonl"
        file.write_text("".join([*lines[:3], broken, *lines[4:]]))
        with pytest.raises(TamperedError) as caught:
            opening.read_book(file)
        assert caught.value.entry == 3


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"a": 1}\n', b"\xff\xfe"])
def test_other_files_are_neither_ledger_nor_export(content, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="file: neither a ledger"):
        opening.read_book(file)


def test_a_database_that_is_no_ledger_is_damaged(tmp_path):
    with raw(tmp_path / "x.sqlite") as connection:
        connection.execute("CREATE TABLE t (a)")
    with pytest.raises(
        DamagedError, match=r"x.sqlite: the file is damaged, or no ledger \(no such table: entries\)"
    ):
        opening.read_book(tmp_path / "x.sqlite")


def test_a_file_that_cannot_be_opened_now_is_not_called_damaged():
    failed = LedgerError("locked")
    failed.__cause__ = sqlite3.OperationalError("database is locked")
    failed.__cause__.sqlite_errorcode = sqlite3.SQLITE_BUSY
    with pytest.raises(LedgerError, match=r"^locked$"), opening._damage_named(Path("x")):
        raise failed


def test_another_table_of_patients_is_found(busy):
    with raw(busy.path) as connection:
        connection.execute("UPDATE patients SET withdrawn = 0")
    with pytest.raises(DamagedError, match="the table of patients is not the one that the entries hold"):
        opening.read_book(busy.path)


def test_nothing_is_overwritten(tmp_path):
    opening.write_new(tmp_path / "a", "1")
    with pytest.raises(UsageError, match="a: exists already, and nothing is overwritten"):
        opening.write_new(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "1"
    with pytest.raises(UsageError, match="give a path that can be written"):
        opening.write_new(tmp_path / "none" / "a", "1")


def test_heads_that_nobody_signed_are_none(book, tmp_path):
    head = book.state.head()
    (tmp_path / "good.json").write_text(json.dumps([head.to_dict()]))
    assert opening.heads_of(head.dataset, [tmp_path / "good.json"]) == ([head], 0)
    (tmp_path / "bad.json").write_text(json.dumps(head.to_dict() | {"size": head.size + 1}))
    with pytest.raises(UsageError, match=r"bad.json: a head in it is not signed by the key that it names"):
        opening.read_heads([tmp_path / "bad.json"])
    with pytest.raises(UsageError, match=r"good.json: no head of this ledger"):
        opening.heads_of("0" * 64, [tmp_path / "good.json"])
    (tmp_path / "odd.json").write_text('{"size": 1}')
    with pytest.raises(
        UsageError, match=r"odd.json: ledger head: .*dataset is missing.*a head is what `ledger head`"
    ):
        opening.read_heads([tmp_path / "odd.json"])
    with pytest.raises(UsageError, match=r"none.json: No such file or directory; check the path"):
        opening.read_heads([tmp_path / "none.json"])


# --- show -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_fits_the_terminal_and_cuts_nothing(book, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = listing.render(book, None, [])
    lines = [line for line in text.splitlines() if str(book.path) not in line]  # a path is left whole
    assert max(map(len, lines)) <= columns
    assert all(entry.kind in text for entry in book.entries)
    assert "\x1b" not in text


def test_the_last_entries(book):
    text = listing.render(book, 2, [])
    assert "(8 entries before these; leave out --last to see them)" in text
    assert "GENESIS" not in text
    assert [entry["seq"] for entry in listing.to_dict(book, 2, [])["entries"]] == [8, 9]
    assert len(listing.to_dict(book, 100, [])["entries"]) == 10


def test_bounds_are_rounded_up_and_what_is_left_down(book):
    row = next(line for line in listing.render(book, None, []).splitlines() if line.startswith("c0 "))
    assert row.split()[:4] == ["c0", "2", "5.09", "3.91"]  # 5.087862 of 9


def test_a_simulation_says_so(tmp_path):
    made = hospital(tmp_path, seeded=True)
    assert "A SIMULATION" in listing.render(opening.read_book(made.path), None, [])
    (_, said) = account._promise(opening.read_book(made.path))
    assert said.startswith("Nothing: this is the ledger of a SIMULATION.")


# --- explain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [
        (0.0, "nothing can be learnt about whether a patient is in the data."),
        (1.0, "guessed right at most 74 times in 100, instead of 50."),  # e / (1 + e) = 0.7311
        (8.0, "guessed all but surely. By itself that promises very little."),
    ],
)
def test_what_an_epsilon_means_for_one_patient(epsilon, said):
    assert account._guess(epsilon, 1e-5).endswith(said)


def test_who_may_change_the_cap(tmp_path):
    two = hospital(tmp_path / "two").ledger.state()
    assert "Raising it takes two of the 3 approvers" in account._who_changes_it(two)
    nobody = dataclasses.replace(two, _genesis=dataclasses.replace(two.genesis, approvers=()))
    assert "It can never be raised: entry 0 does not name two" in account._who_changes_it(nobody)
    plan = hospital(tmp_path / "plan", rule=SCHEDULE)
    assert "can never be raised; lowering it ends" in account._who_changes_it(plan.ledger.state())
    change_cap(plan.ledger, 1.0)
    assert "The schedule was ended" in account._who_changes_it(plan.ledger.state())


def test_each_rule_has_its_reason(book, tmp_path):
    assert "Rényi divergence of order 4" in "".join(account._why(book))
    plan = hospital(tmp_path / "plan", rule=SCHEDULE)
    assert "was written down in entry 0" in "".join(account._why(opening.read_book(plan.path)))


# --- proofs and approvals -------------------------------------------------------------------------------


@pytest.fixture
def proof(busy, book):
    """Of entry 1, since the head of 3 entries."""
    from privacy.merkle import consistency_proof, inclusion_proof

    states = [opening.replay(book.rows[:3]), book.state]
    parts = inclusion_proof(book.state.leaves, 1), consistency_proof(book.state.leaves, 3)
    return proofs.Proof(
        entry=proofs.Proven(body=book.rows[1][0].decode(), proof=tuple(part.hex() for part in parts[0])),
        head=states[1].head(),
        since=states[0].head(),
        consistency=tuple(part.hex() for part in parts[1]),
    )


@pytest.fixture
def checked(tmp_path):
    """Check a proof as its receiver does; return what is said."""

    def check(proof, head=None):
        files = tmp_path / "proof.json", tmp_path / "kept.json"
        files[0].write_text(json.dumps(proof.to_dict()))
        if head is not None:
            files[1].write_text(json.dumps(head.to_dict()))
        return "\n".join(proofs.check_proof(files[0], files[1] if head is not None else None))

    return check


def test_a_proof_that_holds(proof, checked):
    said = checked(proof)
    assert "The proof holds: entry 1 (RESERVE, " in said
    assert "It says: study, round 1: 4 steps" in said
    assert "NOT CHECKED: whether that is a head you know" in said
    assert "Nothing that your kept head contained (3 entries) is missing or changed." in checked(
        proof, proof.since
    )
    alone = dataclasses.replace(proof, since=None, consistency=())
    assert "NOT CHECKED: whether the ledger still contains what it did earlier" in checked(alone)


def test_proofs_that_do_not_hold_say_which_part(proof, checked, tmp_path):
    other = hospital(tmp_path / "other")
    other.pay(work(1))
    head = other.ledger.head()
    changed = dataclasses.replace(proof.entry, body=proof.entry.body.replace("2.82", "2.92"))
    for broken, why in (
        ({"head": dataclasses.replace(proof.head, signature="0" * 128)}, "head is not signed"),
        ({"entry": changed}, "entry is not in the ledger of its head"),
        ({"since": head}, "older head is not a signed head of the same ledger|does not begin with"),
        ({"consistency": ()}, "does not begin with the 3 of the older head"),
    ):
        with pytest.raises(UnmetError, match=why):
            checked(dataclasses.replace(proof, **broken))
    with pytest.raises(UnmetError, match=r"not made for the head that you kept \(10 entries\)"):
        checked(proof, proof.head)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("entry",), None),
        (("entry", "body"), 3),
        (("entry", "proof"), ["x"]),
        (("entry", "proof"), ["0" * 64] * 65),
        (("consistency",), "0" * 64),
        (("head", "size"), -1),
        (("more",), 1),
    ],
)
def test_what_is_no_proof(proof, tmp_path, path, value):
    document = proof.to_dict()
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "proof.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="a proof is what `ledger prove` writes"):
        list(proofs.check_proof(tmp_path / "proof.json", None))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("dataset", "0" * 64, "it is for another ledger"),
        ("from", 7.0, "the cap was changed since"),
        ("to", 11.0, "it approves epsilon 11, not 10"),
        ("prev", "0" * 64, "an entry was written since"),
    ],
)
def test_approvals_that_do_not_count_say_why(tmp_path, field, value, why):
    made = hospital(tmp_path)
    statement = cap_request(made.ledger, 10.0)
    file = tmp_path / "approval.json"

    def write(statement, key, signature=None):
        signature = signature or key.sign("cap-change", statement)
        file.write_text(json.dumps({"key": key.public, "signature": signature, "statement": statement}))

    write(statement, made.approvers[0])
    assert _approval(made.ledger, 10.0, file)["key"] == made.approvers[0].public
    write(statement | {field: value}, made.approvers[0])
    with pytest.raises(UnmetError, match=f"approval.json: {why}"):
        _approval(made.ledger, 10.0, file)
    write(statement, generate_key())
    with pytest.raises(UnmetError, match="is no approver of this ledger"):
        _approval(made.ledger, 10.0, file)
    write(statement, made.approvers[0], "0" * 128)
    with pytest.raises(UnmetError, match="the signature is not that of its key"):
        _approval(made.ledger, 10.0, file)
    write(statement | {"to": "much"}, made.approvers[0])
    with pytest.raises(UsageError, match="from and to must be epsilons"):
        _approval(made.ledger, 10.0, file)
