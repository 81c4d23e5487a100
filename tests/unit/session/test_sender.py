"""The sender on a real socket: which audio it holds and releases."""

from websockets.asyncio.server import ServerConnection, serve

from schemas.audio import AudioEntry, Encoding
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.session.sender import BUFFER_MS, AudioSender
from worker.stt.cartesia import CARTESIA
from worker.stt.provider import Endpoint, StreamSettings
from worker.telemetry.counters import Counters

RATE = 44_100


async def _connect(ws: ServerConnection) -> None:
    await ws.send('{"type":"connected"}')
    await ws.wait_closed()


async def test_backlog_stays_within_limit_at_any_sample_rate() -> None:
    """Converted to milliseconds and back, 3,072 bytes are slightly less at some rates."""
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, RATE, ledger, Pacer(1.0), Counters())
    settings = StreamSettings("ink-2", Encoding.PCM_S16LE, RATE)
    chunk = bytes(3_072)
    async with serve(_connect, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        service = Endpoint(f"ws://127.0.0.1:{port}/stt", "2026-03-01", "sk_car_test")
        async with await CARTESIA.open(service, settings) as stream:
            sender.attach(stream, 0.0)
            taken = 0
            while sender.has_room and taken < 2 * BUFFER_MS:
                taken += 1
                ledger.admit(f"{taken}-0", AudioEntry(audio=chunk))
                sender.enqueue(chunk)
                sender.drain(0.0)
    held = taken * len(chunk) - sender.socket_bytes
    assert held <= sender.bytes_of(BUFFER_MS) + len(chunk)
    assert sender.has_whole_sample
