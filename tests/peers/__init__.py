"""Compares the worker with the published clients of the same provider under one load.

Each client runs unmodified in its own process and environment. A program in `clients` drives it,
without importing turnbus. `bare_relay` is the floor: the same work without any guarantee.
"""
