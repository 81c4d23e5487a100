"""Session leases: claims, heartbeats, takeovers and releases."""
