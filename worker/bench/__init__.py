"""Benchmark: the cost of a worker, the latency of its turns, and their correctness.

Redis, the STT server and one worker run in separate processes; producer and consumer run in the
process of the benchmark. Data flow:
`plan -> producer -> (worker) -> consumer -> checker -> report`.
"""
