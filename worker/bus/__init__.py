"""Redis: connections, session ownership and leases, the audio reader, fenced commits."""
