"""One session: its life, its sockets, what is sent, what is heard, what is told."""
