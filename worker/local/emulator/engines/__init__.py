"""What listens in the local STT server: engines behind one small interface."""
