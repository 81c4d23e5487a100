"""The STT service: the socket, and one module per provider's protocol."""
