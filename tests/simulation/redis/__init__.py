"""A model of the Redis that turnbus uses: its commands, its scripts, its protocol and its faults.

It runs the worker's own Lua scripts, and works on any asyncio loop, in real or virtual time. Two
runs with the same clock and the same commands give the same bytes. `test_differential` compares it
with real servers, `test_cluster` with a real cluster.

The model has no ACL, no RESP3 and one database. Several servers can be a cluster without replicas.
What a server does not know it rejects with the error of a server that lacks it.
"""
