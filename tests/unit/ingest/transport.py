"""A transport without a socket."""


class Transport:
    """A transport that keeps its state only, and never sends."""

    def __init__(self) -> None:
        self.is_reading = True
        self.is_closed = False
        self.written = 0

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "127.0.0.1", 1

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written += len(data)

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.written

    def abort(self) -> None:
        self.is_closed = True
