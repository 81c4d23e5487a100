"""The local turns server; see `server`."""
