"""The comparison: the worker beside the published clients of the same service, under one load.

Each client runs unmodified in a process and an environment of its own, driven by a program in
`clients`, which that environment's Python runs: nothing of turnbus is imported there.
"""
