"""Plays stdin to a turns server through the official SDK; prints what it gets as JSON lines.

The SDK's own Python runs it: `sdk_client.py BASE_URL ENCODING SAMPLE_RATE MODEL`.
"""

import asyncio
import json
import sys

from cartesia import AsyncCartesia, WebSocketConnectionClosedError  # type: ignore[import-not-found]
from cartesia.resources.stt.auto_finalize import (  # type: ignore[import-not-found]
    AsyncAutoFinalizeResourceConnection,
)
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close


async def send(connection: AsyncAutoFinalizeResourceConnection, audio: bytes) -> None:
    chunk = len(audio) // 40 + 1  # odd sizes too
    for start in range(0, len(audio), chunk):
        await connection.send_raw(audio[start : start + chunk])
    await connection.send({"type": "config", "turn": {"end_threshold": 0.3}})
    await connection.send({"type": "close"})


async def main(base_url: str, encoding: str, sample_rate: str, model: str) -> None:
    client = AsyncCartesia(api_key="sk_car_test", base_url=base_url)
    stream = client.stt.auto_finalize.websocket(
        model=model,
        encoding=encoding,
        sample_rate=int(sample_rate),
        keyterm=["Ink 2", "caf\u00e9"],
        turn_start_threshold=0.85,
        turn_end_timeout_ms=5600.0,
    )
    try:
        async with stream as connection:
            sending = asyncio.create_task(send(connection, sys.stdin.buffer.read()))
            async for event in connection:
                print(json.dumps(event.to_dict()), flush=True)
            await sending
        print(json.dumps({"type": "closed"}))
    except (ConnectionClosedError, WebSocketConnectionClosedError) as error:
        await asyncio.gather(
            sending, return_exceptions=True
        )  # the sender finds the socket closed too
        # With unsent commands the SDK raises its own error from the one of websockets.
        cause = error if isinstance(error, ConnectionClosedError) else error.__cause__
        close = cause.rcvd or Close(1006, "")
        print(json.dumps({"type": "closed", "code": close.code, "reason": close.reason}))
    except InvalidStatus as error:
        body = json.loads(error.response.body or b"")
        print(json.dumps({"type": "refused", "status": error.response.status_code, "body": body}))


asyncio.run(main(*sys.argv[1:]))
