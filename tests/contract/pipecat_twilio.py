"""Runs Pipecat's Twilio serializer over stdin, a JSON value a line, and prints its answers.

The serializer's own Python runs it. A string is a message of Twilio's, which is deserialized:
`["audio", BASE64]` or `["key", DIGIT]` is printed, null for other messages. An object
`{"pcm": BASE64}` is 16-bit audio at 8 kHz, which is serialized: the message is printed.
"""

import asyncio
import base64
import json
import sys

from pipecat.frames.frames import (  # type: ignore[import-not-found]
    AudioRawFrame,
    InputAudioRawFrame,
    InputDTMFFrame,
)
from pipecat.serializers.twilio import TwilioFrameSerializer  # type: ignore[import-not-found]

RATE = 8_000


async def main(stream: str) -> None:
    parameters = TwilioFrameSerializer.InputParams(sample_rate=RATE, auto_hang_up=False)
    serializer = TwilioFrameSerializer(stream, params=parameters)
    await serializer.setup(None)  # only read if `sample_rate` is not set
    for line in sys.stdin:
        given = json.loads(line)
        if isinstance(given, str):
            print(json.dumps(shown(await serializer.deserialize(given))), flush=True)
        else:
            frame = AudioRawFrame(base64.b64decode(given["pcm"]), RATE, 1)
            print(json.dumps(await serializer.serialize(frame)), flush=True)


def shown(frame: object) -> list[str] | None:
    if isinstance(frame, InputAudioRawFrame):
        return ["audio", base64.b64encode(frame.audio).decode()]
    if isinstance(frame, InputDTMFFrame):
        return ["key", frame.button.value]
    return None


asyncio.run(main(*sys.argv[1:]))
