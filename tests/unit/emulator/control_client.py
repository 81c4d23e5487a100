"""A client of the control endpoint: one GET, written by hand."""

import json
from collections.abc import Mapping
from typing import Any

import anyio

LOCAL = {"Host": "127.0.0.1:1"}


async def get(
    port: int, target: str, headers: Mapping[str, str] = LOCAL, method: str = "GET"
) -> tuple[int, Any]:
    """Return the status and the JSON body."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    answer = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as tcp:
        await tcp.send("\r\n".join([*lines, "", ""]).encode())
        async for part in tcp:
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
