"""The recovery benchmark: how soon a session goes on after a fault, and whether it is whole.

Redis and the workers are processes of their own; the STT server, the way to it, producer and
consumer run in the bench's process, so that one clock times them all. Data flows
`plan -> lines -> (worker) -> history -> kill, drain, cut -> report`.
"""
