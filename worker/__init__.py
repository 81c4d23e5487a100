"""The turnbus worker: audio from Redis Streams to an STT socket, turn events back."""
