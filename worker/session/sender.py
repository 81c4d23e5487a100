"""The sender: sends a session's audio to the provider on the current socket.

It buffers the little audio that was read and not yet sent, paces it, and keeps samples whole. If
the producer stops inside a turn, it sends filler silence: the provider's clock is the audio.
"""

import time

from schemas.audio import Encoding, TurnConfig
from worker.core.ledger import Ledger
from worker.core.levels import LevelBuffer
from worker.core.send_limits import FrameLimit, Pacer
from worker.core.send_log import SendLog, SendPosition
from worker.core.turn_boundary import LOOKBACK_MS, MAX_PLAUSIBLE_LAG_S, SentAudio, sent_audio
from worker.stt.stream import Stream
from worker.telemetry.counters import Counters

BUFFER_MS = 400
"""Maximum buffered audio before reading stops: enough for one poll interval at replay speed."""

FILLER_DELAY_S = 0.5
"""Minimum pause of the producer before filler is sent, or twice the length of its chunks."""

FILLER_STEP_MS = 100


class AudioSender:
    """Sends one session's audio, in order, whole samples only."""

    def __init__(
        self,
        encoding: Encoding,
        sample_rate: int,
        ledger: Ledger,
        pacer: Pacer,
        stats: Counters,
        frame_limit: FrameLimit | None = None,
    ) -> None:
        self._ledger = ledger
        self._pacer = pacer
        self._stats = stats
        self._frame_limit = frame_limit or FrameLimit()
        self.largest = 0
        """Size of the largest message sent on this socket, in bytes."""
        self._width = encoding.width
        self._silence = encoding.silence
        self._bytes_per_ms = sample_rate * encoding.width / 1000
        self._buffer: list[bytes | TurnConfig] = []  # mostly empty, as a deque 760 bytes
        self._buffered_bytes = 0  # bytes of audio in the buffer
        self._partial_sample = b""  # the beginning of a sample whose rest is in the next chunk
        self._stream: Stream | None = None
        self._frame_ms = 0.0  # maximum duration of a slice, on this socket
        self.chunk_ms = 0.0
        """Duration of the last chunk that was enqueued."""
        self._attached_at = float("-inf")  # when the last socket was attached
        self._paced_at = float("-inf")  # when audio was last held back
        self._configured_at = float("-inf")  # when settings were last sent
        self._busy_at = 0.0  # when audio was waiting, or the socket was blocked
        self._filled_since: float | None = None
        self._filled_ms = 0  # of the current run of filler
        self.fillers: list[tuple[int, int]] = []
        """(session byte, milliseconds) of filler sent on this socket and not yet committed."""
        self.session_bytes = ledger.committed_bytes
        """Bytes of the session sent on this socket, counted from the session's first."""
        self._filler_bytes = 0
        self.socket_bytes = 0
        """Bytes sent on this socket, filler included."""
        self.send_log = SendLog()
        """What was sent on this socket, and when."""
        self._levels = LevelBuffer(encoding, sample_rate, LOOKBACK_MS)
        self._keeps_levels = True  # the provider does not send times, so loudness shows the places

    @property
    def usage(self) -> tuple[int, int, int]:
        """Session byte reached, bytes sent and bytes of filler, on this socket."""
        return self.session_bytes, self.socket_bytes, self._filler_bytes

    @property
    def session_ms(self) -> int:
        """Milliseconds of the session's own audio sent to the provider."""
        return int(self.session_bytes / self._bytes_per_ms)

    @property
    def sent_uncommitted_bytes(self) -> int:
        """Bytes of the session sent on this socket that no published event covers yet."""
        return self.session_bytes - self._ledger.committed_bytes

    @property
    def has_room(self) -> bool:
        """Whether more audio should be read."""
        if self._buffer and self._buffered_bytes >= BUFFER_MS * self._bytes_per_ms:
            return False
        return self._stream is None or self._stream.socket.blocked_since is None

    @property
    def is_drained(self) -> bool:
        """Whether everything read was sent."""
        return not self._buffer

    @property
    def has_whole_sample(self) -> bool:
        """Whether the buffer holds at least one whole sample."""
        return self._buffered_bytes + len(self._partial_sample) >= self._width

    def bytes_of(self, ms: float) -> int:
        """Return the size of `ms` milliseconds of audio, in bytes."""
        return int(ms * self._bytes_per_ms)

    def ms_of(self, size: int) -> float:
        """Return the duration of `size` bytes of audio, in milliseconds."""
        return size / self._bytes_per_ms

    def attach(self, stream: Stream, now: float) -> None:
        """Start sending on a new socket, from the committed position on."""
        self._stream = stream
        self._attached_at = self._busy_at = now
        self._paced_at = self._configured_at = float("-inf")
        self.socket_bytes = self._filler_bytes = self.largest = 0
        self.send_log.restart(self.session_bytes)
        self._levels.restart(self.session_bytes)
        self._keeps_levels = not stream.provider.word_times
        self._frame_ms = stream.provider.frame_ms
        self._pacer.restart(now, stream.provider.max_speed)

    def detach(self) -> None:
        """Drop the socket and all audio after the committed position, which is read again."""
        self._stream = None
        self._buffer.clear()
        self._buffered_bytes = 0
        self._partial_sample = b""
        self._stop_filling()
        self.fillers.clear()
        self._stats.replayed_s += (
            self.ms_of(self.session_bytes - self._ledger.committed_bytes) / 1000
        )
        self.session_bytes = self._ledger.committed_bytes
        self._levels.restart(self.session_bytes)  # a parked session needs no memory for it

    def resume_at(self, rest: bytes) -> None:
        """Continue at the committed position; `rest` is the beginning of the sample there."""
        self.session_bytes = self._ledger.committed_bytes
        self._partial_sample = rest
        self._levels.restart(self.session_bytes)

    def enqueue(self, audio: bytes) -> None:
        """Buffer audio that was read."""
        self._buffer.append(audio)
        self._buffered_bytes += len(audio)
        self.chunk_ms = len(audio) / self._bytes_per_ms
        self._stop_filling()

    def send_at_once(self, audio: bytes, now: float) -> bool:
        """Send one chunk, without buffering it; False if it has to be buffered."""
        stream, size = self._stream, len(audio)
        ms = size / self._bytes_per_ms
        if (
            stream is None
            or self._buffer
            or self._partial_sample
            or size % self._width
            or ms > 2 * self._frame_ms
            or stream.socket.blocked_since is not None
            or not self._pacer.take(now, ms)
        ):
            return False
        self.chunk_ms = ms
        self._busy_at = now
        self._stop_filling()
        if self._keeps_levels:
            self._levels.add(audio)
        self._send_bytes(stream, audio, now, own=size)
        return True

    def idle_bytes(self, at: float) -> int:
        """Return the time from sending the last audio to `at`, in bytes."""
        idle_s = min(at - self._busy_at, MAX_PLAUSIBLE_LAG_S)
        return self.bytes_of(1_000 * idle_s) if idle_s > 0 else 0

    def sent_fast_within(self, seconds: float) -> bool:
        """Whether audio was sent faster than real time on this socket in the last `seconds`."""
        return self._pacer.is_fast and time.monotonic() - self._paced_at <= seconds

    def configured_within(self, seconds: float) -> bool:
        """Whether settings were sent on this socket in the last `seconds`."""
        return time.monotonic() - self._configured_at <= seconds

    def delayed_within(self, seconds: float, now: float) -> bool:
        """Whether audio waited for pacing or for a socket in the last `seconds`."""
        return now - self._attached_at <= seconds or now - self._paced_at <= seconds

    def limit_to_real_time(self) -> None:
        """Catch up no faster than real time from now on."""
        self._pacer.limit_to_real_time()

    def resume_speed(self) -> None:
        """Catch up as fast as before."""
        self._pacer.resume_speed()

    def enqueue_config(self, config: TurnConfig) -> None:
        """Buffer a change of settings, to be sent at its place in the audio."""
        self._buffer.append(config)

    def drain(self, now: float) -> bool:
        """Send what pacing allows; return whether something is left."""
        stream = self._stream
        if stream is None:
            return False
        allowance = self._pacer.allowance_ms(now)
        if self._buffer:
            self._busy_at = now
        while self._buffer:
            head = self._buffer[0]
            if isinstance(head, TurnConfig):
                stream.send_config(head)
                self._configured_at = now
                del self._buffer[0]
                continue
            size = len(head)
            ms = size / self._bytes_per_ms
            if ms > 2 * self._frame_ms:
                size, ms = self._slice(), self._frame_ms
            if ms > allowance or stream.socket.blocked_since is not None:
                self._paced_at = now
                return True
            if size < len(head):
                self._buffer[0] = head[size:]
            else:
                del self._buffer[0]
            self._buffered_bytes -= size
            self._send(stream, head[:size] if size < len(head) else head, now)
            self._pacer.spend(ms)
            allowance -= ms
        return False

    def send_filler(self, now: float, up_since: float, polled_at: float) -> None:
        """Send silence, at real time, if the producer's pause is long enough.

        The pause lasts at least until `polled_at`, when Redis last returned no audio. Redis has
        been available since `up_since`. Time in which the stream was not polled is not silence.
        """
        stream = self._stream
        if stream is None:
            return
        if self._buffer or stream.socket.blocked_since is not None:
            self._busy_at = now  # the stream is not polled while audio waits
            return
        after = max(FILLER_DELAY_S, 2 * self.chunk_ms / 1000)
        if polled_at - max(self._busy_at, up_since) < after:
            self._stop_filling()
            return
        self._fill(stream, polled_at, now)

    def send_silence(self, now: float) -> None:
        """Send silence at real time, after the last audio before the end of a turn."""
        if self._stream is not None and self._stream.socket.blocked_since is None:
            self._fill(self._stream, now, now)

    def stop_silence(self) -> None:
        """Continue with audio: the turn is over."""
        self._stop_filling()

    def sent_at(self, socket_ms: float) -> float | None:
        """Return when this audio of the socket was sent; None if it is no longer known."""
        return self.send_log.sent_at(self.bytes_of(socket_ms))

    def session_byte(self, socket_ms: float) -> int:
        """Return the byte of the session that was sent after `socket_ms` of this socket's audio.

        Exact for audio that is not committed; filler takes no bytes of the session.
        """
        position = self.session_bytes
        behind = max(0, self.socket_bytes - self.bytes_of(socket_ms))
        for at, filler_ms in reversed(self.fillers):
            if position - behind >= at:
                break
            behind -= position - at
            position = at
            behind -= self.bytes_of(filler_ms)
            if behind <= 0:
                return at
        return max(0, position - behind)

    def _fill(self, stream: Stream, until: float, now: float) -> None:
        """Send the filler of this pause, up to the time `until`.

        Pacing limits it like audio: after a standstill of the process, much of it is due at once.
        """
        if self._filled_since is None:
            self._filled_since = until - FILLER_STEP_MS / 1000
        while (until - self._filled_since) * 1000 >= self._filled_ms + FILLER_STEP_MS:
            if not self._pacer.take(now, FILLER_STEP_MS):
                self._paced_at = now
                return
            samples = self.bytes_of(FILLER_STEP_MS) // self._width
            self._send_bytes(stream, self._silence * samples, now, own=0)
            self._filler_bytes += samples * self._width
            self._filled_ms += FILLER_STEP_MS
            self._note_filler()

    def forget_committed(self) -> None:
        """Drop records of filler before the committed position."""
        position = self._ledger.committed_bytes
        self.fillers = [filler for filler in self.fillers if filler[0] > position]

    def _slice(self) -> int:
        samples = self.bytes_of(self._frame_ms) // self._width
        return max(1, samples) * self._width

    def sent_audio(self, until: SendPosition, lookback_ms: int, least_quiet: int = 0) -> SentAudio:
        """Return what was sent before `until` and is not committed, as silent and loud frames.

        Frames up to the level `least_quiet` are silent. Only for a provider that does not send the
        times of words.
        """
        start = max(self._ledger.committed_bytes, until.session_bytes - self.bytes_of(lookback_ms))
        first, levels = self._levels.levels(start, until.session_bytes)
        fillers = self._filler_before(until, first)
        return sent_audio(
            levels,
            first,
            self._levels.frame_bytes,
            fillers,
            until.socket_bytes,
            self.send_log,
            least_quiet,
        )

    def _filler_before(self, moment: SendPosition, start: int) -> list[tuple[int, int]]:
        """Return the filler sent before `moment`, from session byte `start` on."""
        fillers = [filler for filler in self.fillers if filler[0] >= start]
        since_ms = int(
            self.ms_of(
                (self.socket_bytes - moment.socket_bytes)
                - (self.session_bytes - moment.session_bytes)
            )
        )
        while since_ms > 0 and fillers:
            position, filler_ms = fillers.pop()
            if filler_ms > since_ms:
                fillers.append((position, filler_ms - since_ms))
            since_ms -= filler_ms
        return fillers

    def _send_bytes(self, stream: Stream, audio: bytes, now: float, own: int) -> None:
        """Send whole samples, of which `own` bytes are the session's and the rest is filler."""
        size, limit = len(audio), self._frame_limit.max_bytes
        if size <= limit:
            stream.send_audio(audio)
        else:
            for start in range(0, size, limit):
                stream.send_audio(audio[start : start + limit])
        if size > self.largest:
            self.largest = min(size, limit)
        self._stats.bytes += size
        self.socket_bytes += size
        self.session_bytes += own
        self.send_log.add(now, self.socket_bytes, self.session_bytes)

    def _send(self, stream: Stream, audio: bytes, now: float) -> None:
        if self._partial_sample:
            audio = self._partial_sample + audio
            self._partial_sample = b""
        rest = len(audio) % self._width
        if rest:
            self._partial_sample = audio[-rest:]
            audio = audio[:-rest]
        if audio:
            if self._keeps_levels:
                self._levels.add(audio)
            self._send_bytes(stream, audio, now, own=len(audio))

    def _note_filler(self) -> None:
        if self.fillers and self.fillers[-1][0] == self.session_bytes:
            self.fillers[-1] = (self.session_bytes, self.fillers[-1][1] + FILLER_STEP_MS)
        else:
            self.fillers.append((self.session_bytes, FILLER_STEP_MS))

    def _stop_filling(self) -> None:
        self._filled_since = None
        self._filled_ms = 0
