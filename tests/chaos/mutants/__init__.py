"""Workers with one guard removed, each run as `python -m tests.chaos.mutants.NAME`.

They test the checker: it must find the violations that they cause.
"""
