"""The messages of one WebSocket that wait for its handler, made of frames. No I/O."""

from collections import deque
from typing import Final

from websockets.frames import Frame, Opcode

MESSAGE_OVERHEAD_BYTES: Final = 64
"""Memory that a waiting message counts beside its content: an empty message is not free."""

_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Inbox:
    """Whole messages in their order. The frames before them are checked by websockets."""

    def __init__(self) -> None:
        self.waiting_bytes = 0
        """Memory of the messages that wait."""
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self._partial = bytearray()  # fragments may be empty: only their bytes take memory
        self._is_text = False

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, frame: Frame) -> None:
        """Add a frame of any kind. Raises `UnicodeDecodeError` for a text that is not UTF-8."""
        if frame.opcode not in _DATA:
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if not frame.fin or self._partial:
            self._partial += frame.data
            if not frame.fin:
                return
            content, self._partial = bytes(self._partial), bytearray()
        else:
            content = bytes(frame.data)
        self.put(content.decode() if self._is_text else content)

    def put(self, message: str | bytes) -> None:
        """Add a whole message."""
        size = len(message) + MESSAGE_OVERHEAD_BYTES
        if isinstance(message, str) and not message.isascii():
            size = len(message.encode()) + MESSAGE_OVERHEAD_BYTES
        self._messages.append((message, size))
        self.waiting_bytes += size

    def take(self) -> str | bytes:
        """Return the first waiting message."""
        message, size = self._messages.popleft()
        self.waiting_bytes -= size
        return message

    def clear(self) -> None:
        """Drop all waiting messages."""
        self._messages.clear()
        self.waiting_bytes = 0
