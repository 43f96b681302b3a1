"""`python -m deploy doctor`: is this hospital ready to join, and if something is wrong, what is it?

A list of small checks (`registry.CHECKS`), each of which says what it found and how to mend it. A new one is a function
under `@check` and a place in that tuple; the page deploy/docs/doctor.md is made from the same tuple.

Guarantees: every check runs, whatever another one does, and within a deadline (tests/unit/doctor/test_running.py).
Nothing on disk is changed: the test of the disk writes one file that has no name. Nothing that is printed holds a
patient identifier, a name of a data file or a count (tests/integration/test_doctor_cli.py).
What it does not do: mend anything.
"""
