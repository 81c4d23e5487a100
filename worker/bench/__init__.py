"""Benchmarks: load (`load`) and recovery after faults (`recovery`).

The load benchmark runs Redis, the STT server and one worker in separate processes; producer and
consumer run in the process of the benchmark. The tests with faults (`tests/chaos`) and the
comparison with other clients (`tests/peers`) share the producers, the reader of events, the
checkers and the reports.
"""
