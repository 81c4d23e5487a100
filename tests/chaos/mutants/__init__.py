"""Workers with one guard removed, each run as `python -m tests.chaos.mutants.NAME`.

A proof that cannot fail proves nothing: the checker must find what these break.
"""
