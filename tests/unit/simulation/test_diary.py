"""The diaries of virtual sites: read back, last entry first, whatever a kill left behind."""

import json

from deploy.simulation import diary


def _line(round_, *, run="run", loss=1.0, wall_s=0.5, process=1):
    return json.dumps(
        {
            "run": run,
            "round": round_,
            "wall_s": wall_s,
            "cpu_s": 0.25,
            "process": process,
            "loss": loss,
            "reconstruction": loss - 0.1,
            "kl": 0.1,
        }
    )


def _write(folder, site, *lines, end="\n"):
    (folder / site).mkdir(parents=True, exist_ok=True)
    (folder / site / "diary.jsonl").write_text("\n".join(lines) + end)


def test_entries_of_all_sites_and_runs(tmp_path):
    _write(tmp_path, "north", _line(1), _line(2), _line(1, run="other"))
    _write(tmp_path, "south", _line(1, loss=3.0))
    entries = diary.read(tmp_path, ("north", "south", "west"))
    assert [(one.site, one.run, one.round) for one in entries] == [
        ("north", "run", 1),
        ("north", "run", 2),
        ("north", "other", 1),
        ("south", "run", 1),
    ]
    assert entries[3].loss == 3.0


def test_a_round_that_was_run_again_counts_once_with_its_last_entry(tmp_path):
    _write(tmp_path, "north", _line(1, loss=9.0), _line(1, loss=2.0))
    (entry,) = diary.read(tmp_path, ("north",))
    assert entry.loss == 2.0


def test_torn_and_strange_lines_are_passed_over(tmp_path):
    _write(tmp_path, "north", _line(1), _line(2)[:30], '{"round": 3}', "[]", "", _line(4)[:-1], end="")
    assert [entry.round for entry in diary.read(tmp_path, ("north",))] == [1]


def test_the_latest_loss_is_the_last_line_of_this_run(tmp_path):
    _write(tmp_path, "north", *(_line(round_, loss=float(round_)) for round_ in range(1, 101)))
    _write(tmp_path, "south", _line(7), _line(1, run="other", loss=5.0))
    assert diary.latest_losses(tmp_path, ("north", "south", "west"), "run") == {"north": 100.0}
    assert diary.latest_losses(tmp_path, ("south",), "other") == {"south": 5.0}


def test_a_torn_last_line_has_no_loss(tmp_path):
    for end in ("", "\n"):
        _write(tmp_path, "north", _line(1), _line(2)[:40], end=end)
        assert diary.latest_losses(tmp_path, ("north",), "run") == {}
    _write(tmp_path, "north", "[]", "7")
    assert diary.latest_losses(tmp_path, ("north",), "run") == {}


def test_busy_seconds_are_those_of_the_busiest_process_of_each_round(tmp_path):
    _write(tmp_path, "north", _line(1, wall_s=1.0, process=1), _line(2, wall_s=4.0, process=1))
    _write(tmp_path, "south", _line(1, wall_s=2.0, process=2), _line(2, wall_s=1.0, process=2))
    _write(tmp_path, "west", _line(1, wall_s=1.5, process=1), _line(2, wall_s=1.0, process=2))
    entries = diary.read(tmp_path, ("north", "south", "west"))
    assert diary.busy_seconds(entries) == (1.0 + 1.5) + 4.0  # round 1: max(2.5, 2.0); round 2: max(4.0, 2.0)
    assert diary.busy_seconds([]) == 0
