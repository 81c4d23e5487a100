"""Everything that crosses a wire, as types: bus entries, turn events, provider messages.

- `schemas.audio`: what producers append
- `schemas.pcm`: the encodings of the audio
- `schemas.turns`: what workers publish
- `schemas.keys`: the names of the keys
- `schemas.validation`: what is wrong with an entry
- `schemas.cartesia`: the provider's messages
- `schemas.jsonschema`, `schemas/json/`: the same as JSON Schema

Types and codecs only: no I/O, and nothing of `worker` is imported.
"""

from schemas.audio import (
    AudioEntry,
    SessionEntry,
    TurnConfig,
    decode_audio,
    decode_session,
    encode_audio,
    encode_session,
)
from schemas.keys import Keys
from schemas.pcm import Encoding
from schemas.turns import (
    Event,
    TurnEntry,
    decode_event,
    decode_turn_entry,
    encode_event,
    event_type,
)
from schemas.validation import EntryError

__all__ = [
    "AudioEntry",
    "Encoding",
    "EntryError",
    "Event",
    "Keys",
    "SessionEntry",
    "TurnConfig",
    "TurnEntry",
    "decode_audio",
    "decode_event",
    "decode_session",
    "decode_turn_entry",
    "encode_audio",
    "encode_event",
    "encode_session",
    "event_type",
]
