"""The benchmark: what a worker costs, how late its turns are, and whether they are right.

Redis, the STT server and one worker run as processes of their own; producer and consumer run in the
bench's process. Data flows `plan -> load -> (worker) -> consumer -> tally -> report`.
"""
