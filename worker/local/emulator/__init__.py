"""Local STT server that emulates the provider; see `server`."""
