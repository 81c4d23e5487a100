"""Connections to Redis: one server, a cluster, or the master that sentinels name."""
