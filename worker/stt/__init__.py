"""The connection to the STT provider: the socket, and one module per provider's protocol."""
