"""What runs on one machine without key or network: embedded Redis, STT server, demo."""
