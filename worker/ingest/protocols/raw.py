"""Any WebSocket client: settings in the URL, audio as binary, commands as JSON text.

A command has any of `mark` (object), `turn_end` (true), `config` (object) and `end` (true). With
two channels it concerns both sessions. In one command, `config` applies first and `end` last.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from schemas import Encoding, EntryError, decode_audio
from worker.ingest.protocols import Query
from worker.ingest.protocols.channels import Channels
from worker.ingest.protocols.messages import decode_json, marked
from worker.ingest.protocols.sessions import (
    as_object,
    count_channels,
    new_sessions,
    split_query,
)
from worker.ingest.records import (
    CallInput,
    Configured,
    Ended,
    ProtocolError,
    Started,
    TurnEnded,
)

DEFAULT_SAMPLE_RATE = 16_000
_FILES = {
    (0, b"RIFF"): "WAV",
    (0, b"ID3"): "MP3",
    (0, b"fLaC"): "FLAC",
    (0, b"OggS"): "Ogg",
    (0, b"\x1a\x45\xdf\xa3"): "WebM",
    (4, b"ftyp"): "MP4",
}
"""Sound files by their first bytes and the place of those: clients send them by mistake."""

_PARAMETERS = frozenset({"encoding", "sample_rate", "channels", "metadata", "events"})


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    mark: dict[str, Any] | None = None
    turn_end: bool = False
    config: dict[str, Any] | None = None
    end: bool = False


_decoder = msgspec.json.Decoder(_Command)


class Raw:
    """Parser of one client's connection. Raises `ProtocolError` for invalid parameters."""

    subprotocol: str | None = None

    def __init__(self, query: Query) -> None:
        settings, others = split_query(query)
        if unknown := others.keys() - _PARAMETERS:
            raise ProtocolError(f"no such parameter: {', '.join(sorted(unknown))[:100]!r}")
        settings = {"session": str(uuid.uuid4())} | settings
        encoding = others.get("encoding", Encoding.PCM_S16LE)
        rate = others.get("sample_rate", DEFAULT_SAMPLE_RATE)
        count = count_channels(others.get("channels", 1))
        metadata = as_object(others.get("metadata", {}), "metadata")
        if others.get("events", "0") not in ("0", "1"):
            raise ProtocolError("`events` must be 0 or 1")
        if count > 1 and encoding != Encoding.PCM_S16LE:
            raise ProtocolError(f"two channels need the encoding {Encoding.PCM_S16LE}")
        self.events = others.get("events") == "1"
        """Whether the client wants the events of its sessions."""
        self.started = Started(new_sessions(settings, metadata, encoding, rate, count))
        """The sessions, before the first message; the first message's records begin with it."""
        self._channels = Channels(self.started.sessions[0].encoding, count)
        self._begun = False
        self._has_audio = False
        self._ended = False

    def text(self, message: str) -> Sequence[CallInput]:
        """Parse a command."""
        if self._ended:
            return ()
        inputs = self._command(decode_json(_decoder, message, "the command"))
        return (*self._opening(), *inputs)

    def binary(self, message: bytes) -> Sequence[CallInput]:
        """Parse audio."""
        if self._ended:
            return ()
        if not self._has_audio:
            _check_is_raw(message)
            self._has_audio = True
        return (*self._opening(), *self._channels.split(message))

    def _opening(self) -> Sequence[CallInput]:
        if self._begun:
            return ()
        self._begun = True
        return (self.started,)

    def _command(self, command: _Command) -> list[CallInput]:
        tracks = range(len(self.started.sessions))
        inputs: list[CallInput] = []
        if command.config is not None:
            try:
                config = decode_audio({b"config": msgspec.json.encode(command.config)}).config
            except EntryError as error:
                raise ProtocolError(str(error)) from None
            except RecursionError:
                raise ProtocolError("field `config`: nests too deep") from None
            if config is not None:
                inputs += [Configured(config, track) for track in tracks]
        if command.mark is not None:
            inputs += [marked(command.mark, track) for track in tracks]
        if command.turn_end:
            inputs += [TurnEnded(track) for track in tracks]
        if command.end:
            self._ended = True
            inputs.append(Ended())
        if not inputs:
            raise ProtocolError("a command needs one of `mark`, `turn_end`, `config`, `end`")
        return inputs


def _check_is_raw(audio: bytes) -> None:
    for (at, mark), name in _FILES.items():
        if audio.startswith(mark, at):
            raise ProtocolError(f"this is a {name} file; send raw audio, without a header", 1003)
