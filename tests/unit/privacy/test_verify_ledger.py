"""The verifier that stands alone agrees with the main implementation, finds every change, and needs nothing of ours."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import rfc8785

from privacy import verify_ledger
from privacy.errors import TamperedError
from privacy.filters import RenyiFilter
from privacy.replay import State, replay
from privacy.verify_ledger import canonical, ecmascript, verify
from tests.support.ledgers import Builder, begin, public, random_ledger, release, reserve, signed, spoiled

PROGRAM = Path(verify_ledger.__file__)
LEDGERS = int(os.environ.get("LEDGER_AGREEMENT", "1000"))


def replayed(rows) -> State | None:
    """Return what the main implementation makes of a ledger, None if it is not valid."""
    try:
        return replay(rows)
    except TamperedError:
        return None


def agree(rows) -> bool:
    """Return whether a ledger is valid, after requiring that both implementations say the same of it."""
    state, verdict = replayed(rows), verify(rows)
    assert (state is not None) == (not verdict.problem), (verdict.problem, rows)
    if state is None:
        return False
    assert (state.roots[-1], state.size, state.tip) == (
        verdict.ledger.roots[-1],
        len(verdict.ledger.roots),
        verdict.ledger.tip,
    )
    assert state.cap == verdict.ledger.cap
    assert set(state.cohorts) == set(verdict.cohorts)
    for name, (at_order, best) in verdict.cohorts.items():
        spent = state.releases(name)
        rule = state.genesis.rule
        if isinstance(rule, RenyiFilter):
            assert at_order == pytest.approx(rule.epsilon_spent(spent), rel=1e-9, abs=1e-12)
            assert best <= at_order
    return True


def test_it_is_short_enough_to_be_read_and_needs_nothing_of_ours():
    text = PROGRAM.read_text()
    assert len(text.splitlines()) < 300
    assert "privacy" not in {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith("from ")
    }


@pytest.mark.slow
def test_both_implementations_agree_on_random_ledgers():
    """10,000 in the nightly target (LEDGER_AGREEMENT); half of them valid, half over a cap or without approval."""
    rng = random.Random(7)
    valid = 0
    for number in range(LEDGERS):
        made = random_ledger(rng, entries=rng.randrange(2, 12))
        is_valid = agree(made.rows)
        valid += is_valid
        if is_valid and number % 5 == 0:
            for what, rows in spoiled(rng, made):
                assert not agree(rows), what
    assert 0.2 * LEDGERS < valid < 0.9 * LEDGERS


def _small(rng: random.Random) -> Builder:
    """Return a valid ledger to which a cheat can be added."""
    made = begin(rng)
    while made.entries[0]["claims"] != "dp" or len(made.approvers) < 2:
        made = begin(rng)
    reserve(
        made,
        number=1,
        cohorts=["c0"],
        releases=[{**release(rng, 1), "sampling_probability": 0.01}],
        run_cap=None,
    )
    return made


def _one(steps: int = 2) -> dict:
    return {
        "sampling_probability": 0.1,
        "noise_multiplier": 1.5,
        "sampler": "poisson",
        "steps": steps,
        "neighbouring": "add_remove",
    }


def _pay(made: Builder, **changes) -> None:
    reserve(made, **{"number": 9, "cohorts": ["c0"], "releases": [_one()], "run_cap": None, **changes})


def _cap(made: Builder, keys, *, to: float = 99.5, prev: str | None = None, **changes) -> None:
    cap = made.entries[0]["cap"]
    statement = {"dataset": made.dataset, "from": cap, "prev": prev or made.tip, "to": to}
    approvals = [{"key": public(key), "signature": signed(key, "cap-change", statement)} for key in keys]
    made.add("CAP_CHANGE", **{"from": cap, "to": to, "approvals": approvals, **changes})


CHEATS = {
    "more than the cap": lambda made: _pay(made, releases=[_one(100_000)]),
    "more than a run may": lambda made: _pay(
        made, releases=[_one(50)], run_cap={"delta": 1e-5, "epsilon": 0.5, "order": 8}
    ),
    "a cohort that was never opened": lambda made: _pay(made, cohorts=["c0", "c1"]),
    "cohorts out of order": lambda made: (
        made.add("ROSTER", opens="c1", roster=made.digest()),
        _pay(made, cohorts=["c1", "c0"]),
    ),
    "seeded noise": lambda made: _pay(made, randomness="seeded"),
    "protects records": lambda made: _pay(made, mechanism={"unit": "record"}),
    "another relation": lambda made: _pay(made, releases=[{**_one(), "neighbouring": "replace_one"}]),
    "the same work twice": lambda made: _pay(
        made, base=made.entries[1]["base"], run=made.entries[1]["run"], round=made.entries[1]["round"]
    ),
    "no noise": lambda made: _pay(made, releases=[{**_one(), "noise_multiplier": 0}]),
    "noise that is text": lambda made: _pay(made, releases=[{**_one(), "noise_multiplier": "1"}]),
    "more steps than reserved": lambda made: made.add("COMMIT", reserve=1, steps=[2], update=made.digest()),
    "steps of nobody": lambda made: made.add("COMMIT", reserve=0, steps=[1], update=made.digest()),
    "too few steps": lambda made: made.add("COMMIT", reserve=1, steps=[], update=made.digest()),
    "committed twice": lambda made: [
        made.add("COMMIT", reserve=1, steps=[1], update=made.digest()) for _ in range(2)
    ],
    "a cap raised by nobody": lambda made: _cap(made, []),
    "a cap raised by one": lambda made: _cap(made, made.approvers[:1]),
    "a cap raised by one twice": lambda made: _cap(made, made.approvers[:1] * 2),
    "a cap raised by strangers": lambda made: _cap(made, [made.key, made.key]),
    "an old approval": lambda made: _cap(made, made.approvers[:2], prev="0" * 64),
    "another cap changed": lambda made: _cap(made, made.approvers[:2], **{"from": 1.25}),
    "a key that did not agree": lambda made: made.add("ROTATE_KEY", key=public(made.key), proof="0" * 128),
    "a cohort skipped": lambda made: made.add("ROSTER", opens="c2", roster=made.digest()),
    "a second beginning": lambda made: made.add(
        **{name: value for name, value in made.entries[0].items() if name not in ("v", "seq", "prev", "time")}
    ),
    "time goes back": lambda made: made.add("INCIDENT", code="other", reference="", changes={"time": 5}),
    "a number skipped": lambda made: made.add("INCIDENT", code="other", reference="", changes={"seq": 7}),
    "an unknown kind": lambda made: made.add("GIFT", code="other"),
    "a field too many": lambda made: made.add("INCIDENT", code="other", reference="", patients=12),
    "a field too few": lambda made: made.add("INCIDENT", code="other"),
    "a name in a reference": lambda made: made.add("INCIDENT", code="other", reference="Jane Doe"),
    "another version": lambda made: made.add("INCIDENT", code="other", reference="", changes={"v": 2}),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_signed_with_the_right_key_are_found_by_both(cheat: str):
    made = _small(random.Random(3))
    assert agree(made.rows)
    CHEATS[cheat](made)
    assert not agree(made.rows)


def test_two_approvers_raise_the_cap_and_one_lowers_it():
    made = _small(random.Random(4))
    _cap(made, made.approvers[:2])
    assert agree(made.rows)
    made = _small(random.Random(4))
    _cap(made, [], to=0.5)
    assert agree(made.rows)


def test_a_cut_end_is_found_by_whoever_kept_a_head_and_by_nobody_else():
    made = _small(random.Random(5))
    head = made.head()
    assert not verify(made.rows, [head]).problem
    assert not verify(made.rows[:-1]).problem, "a chain cannot know what comes after it"
    assert "cut" in verify(made.rows[:-1], [head]).problem


def test_another_history_is_found_by_whoever_kept_a_head():
    first, second = _small(random.Random(6)), _small(random.Random(6))
    _pay(first)
    head = first.head()
    _pay(second, round=77)
    assert "anew" in verify(second.rows, [head]).problem
    assert "not of this ledger" in verify(_small(random.Random(8)).rows, [head]).problem
    assert "not of this ledger" in verify(first.rows, [{**head, "size": 1}]).problem, (
        "the signature covers it"
    )
    assert "cannot be read" in verify(first.rows, [{"size": 1}]).problem


def test_numbers_are_written_as_ecmascript_writes_them():
    rng = random.Random(1)
    numbers = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(20_000)]
    numbers += [10.0**power * sign for power in range(-30, 30) for sign in (1, -1)] + [
        0.0,
        -0.0,
        5e-324,
        1.5,
        1e21,
        1e-7,
    ]
    for value in numbers:
        if abs(value) < float("inf"):
            assert ecmascript(value).encode() == rfc8785.dumps(value)


def test_texts_and_objects_are_written_as_rfc_8785_says():
    value = {
        "\u20ac": 1,
        "\r": 'a\u0007"\\\n',
        "\ufb33": None,
        "1": True,
        "\U0001f600": [1.5, -3],
        "\u0080": {},
    }
    assert canonical(value).encode() == rfc8785.dumps(value)


def test_a_shuffled_release_is_charged_by_whole_epochs():
    one = {**_one(), "sampler": "shuffled", "sampling_probability": 1 / 75}
    assert verify_ledger.charged(one, 525) == (1.0, 1.5, 7)
    assert verify_ledger.charged(one, 526) == (1.0, 1.5, 8)


@pytest.fixture
def alone(tmp_path):
    """The program by itself in an empty folder, and a way to run it."""
    shutil.copy(PROGRAM, tmp_path / "verify_ledger.py")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-I", "verify_ledger.py", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def _write(path: Path, rows) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, body BLOB, signature BLOB)")
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", [(i, *row) for i, row in enumerate(rows)])
    connection.commit()
    connection.close()
    return path


def test_alone_it_reads_a_ledger_and_an_export(alone, tmp_path):
    made = _small(random.Random(9))
    lines = [json.dumps({"body": body.decode(), "signature": proof.hex()}) for body, proof in made.rows]
    (tmp_path / "export.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "head.json").write_text(json.dumps([made.head()]))
    for file in (_write(tmp_path / "l.sqlite", made.rows), tmp_path / "export.jsonl"):
        done = alone(file, "--head", "head.json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Valid: 2 entries" in done.stdout
        assert "Kept heads agree." in done.stdout
        assert "would not show" in alone(file).stdout


def test_alone_it_names_the_entry_and_the_rule(alone, tmp_path):
    made = _small(random.Random(9))
    _pay(made, releases=[_one(100_000)])
    done = alone(_write(tmp_path / "l.sqlite", made.rows))
    assert done.returncode == 1
    assert done.stdout.startswith("NOT VALID. Entry 2: cohort c0 has spent more than epsilon")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"SQLite format 3\0" + bytes(200),
        b"[" * 100_000,
        b'{"body": 1, "signature": "zz"}',
    ],
)
def test_alone_it_has_an_answer_for_whatever_it_is_given(alone, tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    done = alone("x")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert alone("missing").returncode == 2


def test_a_thousand_entries_take_no_time():
    import time

    rng = random.Random(2)
    made = begin(rng)
    made.entries[0]["cap"] = 8
    rows = list(made.rows)
    state_size = 1
    started = time.process_time()
    while state_size < 400:  # the builder's own tree is the slow one
        made.add("REFUSE", run="r", round=state_size, base=made.digest(), code="off-plan")
        state_size += 1
    built = time.process_time() - started
    started = time.process_time()
    assert not verify(made.rows).problem
    assert time.process_time() - started < max(1.0, built)
    assert rows
