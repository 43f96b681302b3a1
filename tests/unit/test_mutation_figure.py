"""The figure of the mutation tests is raw: what did not run, or has no test, was not killed."""

import json
import tomllib

import pytest

from tests import mutation
from tests.mutation import ROOT, figure, main, table, total


def test_only_a_failed_test_or_one_without_an_end_kills():
    found = figure("privacy/replay.py", [1, 1, 3, -24, 0, 33, 2, None])
    assert (found.mutants, found.failed, found.timed_out, found.no_test) == (8, 3, 1, 1)
    assert (found.killed, found.share) == (4, 0.5)


def test_the_table_has_the_weakest_file_first_and_the_sum_last():
    one, two = figure("one.py", [1, 1, 1, 0]), figure("two.py", [1, 0, 33, None])
    head, first, second, last = table([one, two]).splitlines()
    assert head.split()[0] == "file"
    assert first.split() == ["two.py", "4", "1", "0", "3", "1", "25.0%"]
    assert second.split() == ["one.py", "4", "3", "0", "1", "0", "75.0%"]
    assert last.split() == ["all", "8", "4", "0", "4", "1", "50.0%"]
    assert total([one, two]).killed == 4


@pytest.mark.parametrize(("survived", "status"), [(0, 0), (1, 0), (2, 1)])
def test_less_than_nine_in_ten_is_a_failure(tmp_path, monkeypatch, capsys, survived: int, status: int):
    monkeypatch.setattr(mutation, "MUTANTS", tmp_path)
    assert main(["--report"]) == 1  # no result is no success
    (tmp_path / "privacy").mkdir()
    statuses = {f"privacy.replay.x__mutmut_{number}": int(number >= survived) for number in range(10)}
    (tmp_path / "privacy/replay.py.meta").write_text(json.dumps({"exit_code_by_key": statuses}))
    assert main(["--report", "replay"]) == status
    assert f"{(10 - survived) * 10:.1f}%" in capsys.readouterr().out
    assert main(["--report", "ledger"]) == 1


def test_what_is_mutated_and_what_runs_are_there():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    for name in (*settings["only_mutate"], *settings["pytest_add_cli_args_test_selection"]):
        assert (ROOT / name).is_file()
