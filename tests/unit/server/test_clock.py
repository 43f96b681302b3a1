"""Time goes on by itself on the wall, and only by sleeping in a simulation."""

import time

from server.clock import VirtualClock, WallClock


def test_virtual_time_moves_only_when_somebody_sleeps():
    clock = VirtualClock()
    assert clock.now() == 0.0
    started = time.monotonic()
    clock.sleep(3600.0)
    clock.sleep(0.5)
    assert clock.now() == 3600.5
    assert time.monotonic() - started < 60


def test_virtual_clocks_are_independent():
    one, other = VirtualClock(), VirtualClock()
    one.sleep(5.0)
    assert other.now() == 0.0


def test_the_wall_clock_sleeps_and_never_goes_back():
    clock = WallClock()
    before = clock.now()
    clock.sleep(0.02)
    assert clock.now() - before >= 0.02


def test_a_corrected_system_date_moves_no_deadline(monkeypatch):
    clock = WallClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.now() >= before
