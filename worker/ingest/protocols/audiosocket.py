"""Asterisk's AudioSocket: packets of type, length and payload on one TCP connection.

The UUID comes first and is the session's id. The first audio packet decides the rate. An
unusable digit and an unknown type are skipped, because a closed connection ends Asterisk's call.
"""

import uuid
from collections.abc import Sequence

from schemas import Encoding, SessionEntry
from worker.ingest.protocols.channels import Channels
from worker.ingest.protocols.messages import dtmf
from worker.ingest.records import CallInput, Ended, Marked, ProtocolError, Started

HANGUP, UUID, DTMF, ERROR = 0x00, 0x01, 0x03, 0xFF
RATES = dict(
    enumerate((8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000), 0x10)
)
"""Samples per second of each type of audio packet."""

MAX_PACKET_BYTES = 3 + 0xFFFF
MAX_EARLY_DIGITS = 100
"""Maximum digits kept before the first audio; later ones are dropped."""

_HEADER_BYTES = 3


class AudioSocket:
    """Parser of one connection's bytes."""

    def __init__(self) -> None:
        self.session: str | None = None
        """The UUID as text; None until it arrives."""
        self.ended = False
        """Whether a packet ended the call, or was unusable; nothing behind it is parsed."""
        self.error: ProtocolError | None = None
        """Why the connection is unusable; None while it is not."""
        self._rest = b""
        self._type: int | None = None
        self._channels = Channels(Encoding.PCM_S16LE, 1)
        self._early: list[Marked] = []

    @property
    def inside_packet(self) -> bool:
        """Whether the bytes so far end within a packet."""
        return bool(self._rest)

    def feed(self, received: bytes) -> Sequence[CallInput]:
        """Parse bytes, cut anywhere. After an unusable packet, `error` is set."""
        buffer = self._rest + received
        inputs: list[CallInput] = []
        start = 0
        while not self.ended and len(buffer) - start >= _HEADER_BYTES:
            length = int.from_bytes(buffer[start + 1 : start + _HEADER_BYTES], "big")
            end = start + _HEADER_BYTES + length
            if len(buffer) < end:
                break
            try:
                inputs += self._packet(buffer[start], buffer[start + _HEADER_BYTES : end])
            except ProtocolError as error:
                self.error, self.ended = error, True
            start = end
        self._rest = b"" if self.ended else buffer[start:]
        return inputs

    def _packet(self, kind: int, payload: bytes) -> Sequence[CallInput]:
        if kind in (HANGUP, ERROR):
            self.ended = True
            return (Ended(),)
        if kind == UUID:
            self._identify(payload)
        elif kind in RATES and payload:
            return self._audio(kind, payload)
        elif kind == DTMF and len(payload) == 1 and payload.isascii():
            return self._key(dtmf(payload.decode()))
        return ()

    def _identify(self, payload: bytes) -> None:
        if len(payload) != 16:
            raise ProtocolError(f"a UUID has 16 bytes, not {len(payload)}")
        session = str(uuid.UUID(bytes=payload))
        if self.session not in (None, session):
            raise ProtocolError("a second UUID came on one connection")
        self.session = session

    def _key(self, mark: Marked) -> Sequence[CallInput]:
        if self._type is not None:
            return (mark,)
        if len(self._early) < MAX_EARLY_DIGITS:
            self._early.append(mark)
        return ()

    def _audio(self, kind: int, payload: bytes) -> Sequence[CallInput]:
        if self.session is None:
            raise ProtocolError("audio came before the UUID; is this an AudioSocket client?")
        audio = self._channels.split(payload)
        if self._type == kind:
            return audio
        if self._type is not None:
            old, new = RATES[self._type], RATES[kind]
            raise ProtocolError(f"the rate changed from {old} to {new} Hz; a session has one rate")
        self._type = kind
        entry = SessionEntry(
            session=self.session, encoding=Encoding.PCM_S16LE, sample_rate=RATES[kind]
        )
        early, self._early = self._early, []
        return (Started((entry,)), *early, *audio)
