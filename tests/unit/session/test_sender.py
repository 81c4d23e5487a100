"""The sender on a real socket: which audio it holds and releases."""

from itertools import count

from websockets.asyncio.server import ServerConnection, serve

from schemas.audio import AudioEntry, Encoding
from tests.simulation.lines import Line
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.session.sender import BUFFER_MS, AudioSender
from worker.stt.cartesia import CARTESIA
from worker.stt.flux import FLUX
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


def test_socket_audio_maps_to_the_session_across_filler() -> None:
    """500 ms of audio, 400 ms of filler, 300 ms of audio."""
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, 8_000, ledger, Pacer(0), Counters())
    sender.attach(Line(), 0.0)
    now = 10.0
    for ms in (500, 0, 300):
        if ms:
            ledger.admit(f"{ms}-0", AudioEntry(audio=bytes(16 * ms)))
            sender.enqueue(bytes(16 * ms))
            sender.drain(now)
        else:
            for _ in range(4):
                sender.send_silence(now)
                now += 0.101
            sender.stop_silence()
    filler_ms = (sender.socket_bytes - sender.session_bytes) // 16
    assert filler_ms == 400
    expected = {0: 0, 250: 250, 500: 500, 700: 500, 900: 500, 901: 501, 1_200: 800, 9_000: 800}
    assert {ms: sender.session_byte(ms) // 16 for ms in expected} == expected
    ledger.commit_to(600 * 16)
    sender.forget_committed()
    assert sender.session_byte(1_100) == 700 * 16
    assert sender.session_byte(500) <= 600 * 16


def test_loudness_is_kept_only_for_provider_without_times() -> None:
    """A session moves from a provider that sends the times of words to another, and back."""
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, 8_000, ledger, Pacer(0), Counters())
    chunk, entries = bytes(1_600), count(1)  # 100 ms
    for provider, frames in ((FLUX, 0), (CARTESIA, 20), (FLUX, 0)):
        line = Line()
        line.provider = provider
        sender.attach(line, 0.0)
        ledger.admit(f"{next(entries)}-0", AudioEntry(audio=chunk))
        assert sender.send_at_once(chunk, 1.0)
        ledger.admit(f"{next(entries)}-0", AudioEntry(audio=chunk))
        sender.enqueue(chunk)
        sender.drain(1.0)
        assert len(sender.sent_audio(sender.send_log.moment(2.0), 1_000).silent) == frames


def test_filler_after_a_standstill_is_paced() -> None:
    """A provider rejects audio that is much faster than real time, silence too."""
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, 8_000, ledger, Pacer(1.5), Counters())
    sender.attach(Line(), 10.0)
    sent_ms = []
    for now in (10.0, 15.0, 15.125, 16.0):
        sender.send_silence(now)
        sent_ms.append(sender.socket_bytes // 16)
    assert sent_ms == [0, 300, 400, 700]
