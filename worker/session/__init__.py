"""One session: its phases, its audio, its provider connection and its events."""
