"""Who runs which session: claims, leases, takeovers and releases."""
