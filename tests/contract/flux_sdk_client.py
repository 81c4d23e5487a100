"""Plays stdin to a Flux server through the official SDK; prints what it gets as JSON lines.

The SDK's own Python runs it: `flux_sdk_client.py URL ENCODING SAMPLE_RATE MODEL`. URL is that of
the server, without a path.
"""

import asyncio
import json
import sys
from typing import Any

from deepgram import AsyncDeepgramClient  # type: ignore[import-not-found]
from deepgram.core.api_error import ApiError  # type: ignore[import-not-found]
from deepgram.environment import DeepgramClientEnvironment  # type: ignore[import-not-found]
from deepgram.listen.v2.socket_client import (  # type: ignore[import-not-found]
    AsyncV2SocketClient,
)
from websockets.exceptions import ConnectionClosed


async def send(connection: AsyncV2SocketClient, audio: bytes) -> None:
    chunk = len(audio) // 40 + 1  # odd sizes too
    for start in range(0, len(audio), chunk):
        await connection.send_media(audio[start : start + chunk])
    await connection.send_configure({"type": "Configure", "thresholds": {"eot_threshold": 0.75}})
    await connection.send_force_end_turn()
    await connection.send_force_end_turn()
    await connection.send_close_stream()


async def main(url: str, encoding: str, sample_rate: str, model: str) -> None:
    environment = DeepgramClientEnvironment(
        base=url, production=url.replace("http:", "ws:"), agent=url, agent_rest=url
    )
    client = AsyncDeepgramClient(api_key="dg_test", environment=environment)
    options: dict[str, Any] = {
        "model": model,
        "encoding": encoding,
        "sample_rate": int(sample_rate),
        "eager_eot_threshold": 0.4,
        "eot_timeout_ms": 6000,
        "keyterm": ["Ink 2", "caf\u00e9"],
    }
    try:
        async with client.listen.v2.connect(**options) as connection:
            sending = asyncio.create_task(send(connection, sys.stdin.buffer.read()))
            try:
                while True:
                    message = await connection.recv()
                    print(json.dumps(json.loads(message.model_dump_json())), flush=True)
            except ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd else 1006
                print(json.dumps({"type": "closed", "code": code}))
            await sending
    except ApiError as error:
        print(json.dumps({"type": "refused", "status": error.status_code}))


asyncio.run(main(*sys.argv[1:]))
