"""Recovery benchmark: time until a session continues after a fault, and its completeness.

Redis and the workers run in separate processes. The STT server, its proxy, producer and consumer
run in the process of the benchmark, so that they share one clock. Data flow:
`plan -> producer -> (worker) -> event log -> kill, drain, cut -> report`.
"""
