"""The supervisor on real processes: order, readiness, restarts, leftovers; nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from deploy.ledger.failures import UsageError
from deploy.network.programs import Program, environment
from deploy.network.supervise import (
    RUNNING,
    NotReadyError,
    Supervisor,
    leftovers,
    started_at,
    stop_all,
    supervisor_of,
)

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def program(folder, name, code=SLEEP, **more):
    return Program(
        name=name, argv=(sys.executable, "-c", code), environment=environment(folder / name), **more
    )


def wait_for(true, seconds=10.0):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_programs_start_in_order_and_all_end(tmp_path):
    said, order = [], []
    programs = [
        program(tmp_path, name, ready=lambda name=name: order.append(name) or True) for name in ("one", "two")
    ]
    supervisor = Supervisor(programs, tmp_path, said.append)
    with supervisor.running(10, threading.Event()):
        pids = leftovers(tmp_path)
        assert list(pids) == ["one", "two"]
        assert supervisor_of(tmp_path) == os.getpid()
    assert order == ["one", "two"]
    assert said == ["one: answers", "two: answers"]
    assert [started_at(pid) for pid in pids.values()] == [None, None]
    assert not (tmp_path / RUNNING).exists()


def test_what_a_program_has_started_ends_with_it(tmp_path):
    child, new = tmp_path / "child", tmp_path / "child.new"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
open({str(new)!r}, "w").write(str(child.pid))
os.rename({str(new)!r}, {str(child)!r})
time.sleep(600)
"""
    supervisor = Supervisor([program(tmp_path, "parent", code, ready=child.exists)], tmp_path, lambda _: None)
    with supervisor.running(10, threading.Event()):
        pid = int(child.read_text())
        assert started_at(pid) is not None
    wait_for(lambda: started_at(pid) is None)


def test_nothing_counts_as_ready_before_it_says_so(tmp_path):
    code = "import time; time.sleep(0.5); print('node id 7', flush=True); time.sleep(600)"
    begun = time.monotonic()
    supervisor = Supervisor([program(tmp_path, "node", code, says="node id ")], tmp_path, lambda _: None)
    with supervisor.running(10, threading.Event()):
        assert time.monotonic() - begun > 0.5


def test_what_an_earlier_start_has_said_does_not_count(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node.log").write_text("node id 7\n")
    supervisor = Supervisor([program(tmp_path, "node", says="node id ")], tmp_path, lambda _: None)
    with pytest.raises(NotReadyError, match="does not answer"), supervisor.running(0.5, threading.Event()):
        pass


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "print('no key'); raise SystemExit(3)",
            r"two: ended with exit code 3 before it answered; .*ends: no key",
        ),
        (SLEEP, r"two: does not answer after 1 s; .*two\.log ends: up"),
    ],
)
def test_a_program_that_does_not_answer_stops_all(tmp_path, code, says):
    programs = [program(tmp_path, "one"), program(tmp_path, "two", code, ready=lambda: False)]
    seen = {}
    supervisor = Supervisor(programs, tmp_path, lambda line: seen.update(leftovers(tmp_path)))
    with pytest.raises(NotReadyError, match=says), supervisor.running(1, threading.Event()):
        pass
    assert seen
    assert [started_at(pid) for pid in seen.values()] == [None] * len(seen)


def test_a_program_that_is_not_installed_is_named(tmp_path):
    missing = Program(name="nginx", argv=("/nowhere/nginx",), environment={})
    supervisor = Supervisor([missing], tmp_path, lambda _: None)
    with pytest.raises(NotReadyError, match="nginx: /nowhere/nginx cannot be started"):
        supervisor.running(1, threading.Event()).__enter__()


def test_told_to_stop_while_it_waits(tmp_path):
    stop = threading.Event()
    supervisor = Supervisor(
        [program(tmp_path, "one", ready=lambda: stop.set() or False)], tmp_path, lambda _: None
    )
    with pytest.raises(NotReadyError, match="told to stop"), supervisor.running(60, stop):
        pass


def test_what_is_killed_is_started_again(tmp_path):
    said, stop = [], threading.Event()
    supervisor = Supervisor([program(tmp_path, "one")], tmp_path, said.append)
    with supervisor.running(10, stop):
        watching = threading.Thread(target=supervisor.watch, args=(stop,))
        watching.start()
        before = leftovers(tmp_path)["one"]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: leftovers(tmp_path).get("one", before) != before)
        stop.set()
        watching.join()
    assert any("one: ended (exit code -9); started again in 1 s" in line for line in said)


def test_two_of_one_folder_are_refused(tmp_path):
    first, second = (Supervisor([program(tmp_path, "one")], tmp_path, lambda _: None) for _ in range(2))
    with first.running(10, threading.Event()):
        with pytest.raises(UsageError, match="is in use by another start"):
            second.running(10, threading.Event()).__enter__()
        assert list(leftovers(tmp_path)) == ["one"]


def _killed_supervisor(folder):
    """Leave a process behind, as a supervisor does that is killed; return its id."""
    code = f"""
import sys, threading, time
from pathlib import Path
from deploy.network.programs import Program, environment
from deploy.network.supervise import Supervisor
folder = Path({str(folder)!r})
one = Program(name="one", argv=(sys.executable, "-c", {SLEEP!r}), environment=environment(folder / "one"))
with Supervisor([one], folder, lambda _: None).running(10, threading.Event()):
    print("up", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.communicate()
    return leftovers(folder)["one"]


def test_what_a_killed_supervisor_left_is_refused_by_the_next_and_ended_by_stop(tmp_path):
    pid = _killed_supervisor(tmp_path)
    supervisor = Supervisor([program(tmp_path, "one")], tmp_path, lambda _: None)
    with pytest.raises(UsageError, match="one of an earlier start still run"):
        supervisor.running(10, threading.Event()).__enter__()
    assert started_at(pid) is not None
    assert stop_all(tmp_path) == ["one"]
    assert started_at(pid) is None
    with supervisor.running(10, threading.Event()):
        pass


def test_a_number_that_is_another_process_by_now_is_never_signalled(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, start_new_session=True)
    try:
        other.stdout.readline()
        stale = {"pid": other.pid, "started": started_at(other.pid) - 1}
        (tmp_path / RUNNING).write_text(json.dumps({"supervisor": stale, "one": stale}))
        assert stop_all(tmp_path) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()
