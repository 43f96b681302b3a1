"""Workers that cannot start end the run with a reason, instead of being replaced for ever."""

import functools
import os

import pytest

from deploy.errors import EngineError
from deploy.simulation.grid import LocalGrid
from deploy.simulation.workers import Workers
from tests.support.apps import answer, make_moody, question


def test_a_program_whose_workers_never_start_is_told_so():
    workers = Workers(functools.partial(os._exit, 3), {"north": 2}, num_workers=1)
    grid = LocalGrid(("north",), workers)
    with pytest.raises(EngineError, match=r"3 worker processes in a row .*__main__.*workers=1"):
        grid.send_and_receive([question(2) for _ in range(8)])
    workers.close()


def test_workers_that_start_and_die_over_and_over_are_replaced_each_time(tmp_path):
    workers = Workers(make_moody, {"north": 2}, num_workers=1)
    grid = LocalGrid(("north",), workers)
    for _ in range(5):
        (tmp_path / "now").touch()
        (dead,) = grid.send_and_receive([question(2, mood="die", once=str(tmp_path / "now"))])
        assert dead.has_error()
    assert answer(*grid.send_and_receive([question(2, i=7)]))["i"] == 7
    workers.close()
