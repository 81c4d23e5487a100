"""Redis: connections, session intake and leases, the audio reader, fenced commits."""
