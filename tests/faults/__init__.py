"""Counted faults: scripts that break segloc's inputs, disks and processes, and count what follows.

Each script ``python -m tests.faults.NAME`` has the same shape: ``KINDS`` maps the name of a kind of fault to a function
of (cases, seed) that returns a `common.Count`. ``LONG`` and ``SHORT`` are the numbers of cases, over all kinds, of the
long form and of the short form that `test_short` runs, which leaves out kinds that are not in ``SHORT_KINDS``, if there
is one. To add a script, write it, enter its name in `common.SCRIPTS` and give its table a place in docs/reliability.md,
which ``python -m tests.faults.page`` fills.
"""
