"""What a person sees while a simulation runs: one line a round in a pipe, a table in a terminal, no invented times."""

import io

import pytest
from rich.console import Console

from deploy.simulation import progress
from deploy.simulation.progress import LiveTable, Pace, PlainLines, RoundView, Silent, bar, choose, draw


def _view(**changes):
    fields = {
        "arm": "federated-dp",
        "round": 1,
        "rounds": 4,
        "status": {"north": "admitted", "south": "no-reply"},
        "loss": {"north": 2.0, "south": 4.0},
        "epsilon": {"north": 1.5},
        "target": 3.0,
    }
    return RoundView(**{**fields, **changes})


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_told_once_there_is_a_round_to_judge_by(clock):
    pace = Pace()
    assert pace.left(_view(round=1)) is None
    clock[0] = 10.0
    assert pace.left(_view(round=2)) == 20.0  # one round took 10 s, two are left
    clock[0] = 30.0
    assert pace.left(_view(round=3)) == 15.0  # two rounds took 30 s, one is left
    assert pace.left(_view(round=4)) is None


def test_another_arm_and_a_resumed_one_begin_anew(clock):
    pace = Pace()
    pace.left(_view(round=1))
    clock[0] = 100.0
    assert pace.left(_view(arm="federated", round=1)) is None
    pace = Pace()
    assert pace.left(_view(round=3)) is None
    clock[0] = 107.0
    assert pace.left(_view(round=3, rounds=5)) is None
    assert pace.left(_view(round=4, rounds=5)) == 7.0


def test_a_line_a_round_without_a_terminal(clock):
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.note("data: toy, 2 sites")
    lines.update(_view())
    clock[0] = 10.0
    lines.update(_view(round=2, status={"north": "admitted", "south": "admitted"}))
    lines.close()
    assert stream.getvalue().splitlines() == [
        "data: toy, 2 sites",
        "federated-dp: round 1/4, 1/2 sites, loss 3.00, epsilon 1.500, south: no-reply",
        "federated-dp: round 2/4, 2/2 sites, loss 3.00, epsilon 1.500, 20 s left in this arm",
    ]


def test_what_is_not_known_is_not_shown():
    stream = io.StringIO()
    PlainLines(stream).update(_view(loss={}, epsilon={}, status={"north": "admitted"}))
    assert stream.getvalue() == "federated-dp: round 1/4, 1/1 sites\n"


def _drawn(view, seconds=None):
    stream = io.StringIO()
    Console(file=stream, width=100, force_terminal=False).print(draw(view, seconds))
    return stream.getvalue()


def test_the_table_shows_rounds_sites_losses_and_epsilon_against_its_target():
    text = _drawn(_view(), 12.4)
    head, columns, north, south = text.splitlines()
    assert "round 1/4" in head
    assert "12 s left in this arm" in head
    assert "loss (simulation only)" in columns
    assert north.split() == ["north", "✓", "2.00", "██████░░░░░░", "1.50"]  # half of 3.0
    assert south.split() == ["south", "·", "no-reply", "4.00"]
    assert "left" not in _drawn(_view())


def test_a_refused_update_and_an_epsilon_without_target():
    text = _drawn(_view(status={"north": "not-finite"}, target=None))
    assert "✗ not-finite" in text
    assert "1.50" in text
    assert "█" not in text.splitlines()[2]


def test_many_sites_are_counted_beyond_the_twentieth():
    text = _drawn(_view(status={f"site-{i:02d}": "admitted" for i in range(25)}, loss={}, epsilon={}))
    assert "site-19" in text
    assert "site-20" not in text
    assert "and 5 more sites" in text


@pytest.mark.parametrize(("share", "blocks"), [(-1, 0), (0, 0), (0.5, 5), (1, 10), (7, 10)])
def test_a_bar_has_its_width(share, blocks):
    assert bar(share, 10) == "█" * blocks + "░" * (10 - blocks)


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_in_a_terminal_lines_elsewhere():
    assert isinstance(choose(as_json=False, stream=io.StringIO()), PlainLines)
    assert isinstance(choose(as_json=True, stream=_Terminal()), PlainLines)
    shown = choose(as_json=False, stream=_Terminal())
    assert isinstance(shown, LiveTable)
    shown.close()


def test_the_live_table_takes_itself_away_and_keeps_its_notes():
    stream = io.StringIO()
    table = LiveTable(Console(file=stream, width=100, force_terminal=True, color_system=None))
    table.note("a [bold]name[/bold] is shown as it is")
    table.update(_view())
    table.update(_view(round=4))
    table.close()
    assert "a [bold]name[/bold] is shown as it is" in stream.getvalue()
    assert "federated-dp: 4 rounds done" in stream.getvalue()


def test_silence():
    quiet = Silent()
    quiet.note("nothing")
    quiet.update(_view())
    quiet.close()
