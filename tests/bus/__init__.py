"""Tests of `worker.bus`, against a real server."""
