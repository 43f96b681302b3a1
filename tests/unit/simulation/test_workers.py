"""Worker processes: a site keeps its process, death and Ctrl-C stay where they are, memory is bounded."""

import os
import signal
import subprocess
import sys
import time

import pytest
from flwr.common.constant import ErrorCode

from deploy.simulation.grid import LocalGrid
from deploy.simulation.workers import WINDOW, Workers
from tests.support.apps import answer, make_echo, make_moody, question
from tests.support.shared import ROOT

SITES = {"north": 2, "south": 3, "west": 4}


@pytest.fixture(scope="module")
def grid():
    workers = Workers(make_moody, SITES, num_workers=2)
    yield LocalGrid(SITES, workers)
    workers.close()


def _processes(grid):
    return {site: answer(*grid.send_and_receive([question(node)]))["process"] for site, node in SITES.items()}


def test_a_site_keeps_its_process_and_sites_are_shared_out(grid):
    first = _processes(grid)
    assert first == _processes(grid)
    assert first["north"] == first["west"] != first["south"]
    assert os.getpid() not in first.values()


def test_replies_come_in_the_order_in_which_they_are_pulled(grid):
    ids = grid.push_messages([question(node, i=node) for node in (2, 3, 4, 2)])
    assert [answer(reply)["i"] for reply in grid.pull_messages(reversed(ids))] == [2, 4, 3, 2]
    assert grid.pull_messages(ids) == []


def test_a_reply_names_its_message_and_its_node(grid):
    ids = grid.push_messages([question(3, i=0)])
    (reply,) = grid.pull_messages(ids)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (ids[0], 3)


def test_a_worker_has_few_finished_replies_at_a_time(grid, tmp_path):
    ids = grid.push_messages([question(2, i=i, log=str(tmp_path / "log")) for i in range(8)])
    assert len(grid.pull_messages(ids[:1])) == 1
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and len((tmp_path / "log").read_text()) <= WINDOW + 1:
        grid.pull_messages(grid.push_messages([question(3)]))  # keeps every worker busy
    assert len((tmp_path / "log").read_text()) <= WINDOW + 1
    assert [answer(reply)["i"] for reply in grid.pull_messages(ids[1:])] == list(range(1, 8))


def test_an_exception_becomes_an_error_reply_with_its_type_alone(grid, tmp_path):
    (tmp_path / "now").touch()
    (reply,) = grid.send_and_receive([question(2, mood="raise", once=str(tmp_path / "now"))])
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "RuntimeError")
    assert "0815" not in str(reply)


@pytest.mark.parametrize("end", ["die", "half"])
def test_a_worker_that_dies_answers_with_an_error_and_is_replaced(end, grid, tmp_path):
    (tmp_path / "now").touch()
    before = _processes(grid)
    deadly = question(2, mood=end, once=str(tmp_path / "now"))
    ids = grid.push_messages([deadly, question(3, i=3), question(4, i=4), question(2, i=2)])
    dead, other, waiting, next_ = grid.pull_messages(ids)
    assert (dead.error.code, dead.error.reason) == (ErrorCode.CLIENT_APP_CRASHED, "the worker process ended")
    assert dead.metadata.src_node_id == 2
    assert dead.metadata.reply_to_message_id == ids[0]
    assert [answer(reply)["i"] for reply in (other, waiting, next_)] == [3, 4, 2]
    after = _processes(grid)
    assert after["south"] == before["south"]
    assert after["north"] != before["north"]


def test_a_worker_that_is_killed_while_it_waits_is_replaced_at_its_next_message(grid):
    before = _processes(grid)
    os.kill(before["south"], signal.SIGKILL)
    time.sleep(0.2)
    (first,) = grid.send_and_receive([question(3, i=1)])
    (second,) = grid.send_and_receive([question(3, i=2)])
    assert first.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert answer(second)["i"] == 2


def test_ctrl_c_reaches_no_worker(grid):
    before = _processes(grid)
    for process in set(before.values()):
        os.kill(process, signal.SIGINT)
    assert _processes(grid) == before


def test_the_end_does_not_wait_for_a_worker_that_hangs(tmp_path):
    (tmp_path / "now").touch()
    workers = Workers(make_moody, {"north": 2}, num_workers=1)
    grid = LocalGrid(("north",), workers)
    process = answer(*grid.send_and_receive([question(2)]))["process"]
    grid.push_messages([question(2, mood="sleep", once=str(tmp_path / "now"))])
    started = time.monotonic()
    workers.close()
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_no_process_is_started_before_there_is_work():
    workers = Workers(make_echo, SITES, num_workers=2)
    assert workers.result("m1") is None
    assert workers._workers == []
    workers.close()


def test_even_the_first_process_of_a_program_is_out_of_reach_of_ctrl_c():
    program = """
import os, signal, time
from deploy.simulation.grid import LocalGrid
from deploy.simulation.workers import Workers
from tests.support.apps import answer, make_echo, question

if __name__ == "__main__":
    workers = Workers(make_echo, {"north": 2}, num_workers=1)
    grid = LocalGrid(("north",), workers)
    process = answer(*grid.send_and_receive([question(2)]))["process"]
    os.kill(process, signal.SIGINT)
    time.sleep(0.5)
    print(answer(*grid.send_and_receive([question(2)]))["process"] == process)
    workers.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
