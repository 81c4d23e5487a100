"""Audio that encodes word numbers, so that a transcript proves that every sample was received.

A word is a block of fixed length without silence: each sample is +A or -A. A block consists of a
marker of 32 samples, then the 32 bits of the word's number, repeated up to the block's end. A
fixed pseudo-random pattern of +1 and -1 scrambles the whole block. Every part of a block thus
identifies its word and its position in the block. Audio that was lost, repeated, moved or changed,
down to one sample, does not match. Levels are compared as encoded, also in mu-law and A-law.
"""

import functools
import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.base import AudioFormat
from worker.local.pcm import PcmDecoder, encode, silence

WORD_MS: Final = 200
QUIET: Final = 1 / 64  # maximum level of silence: phone lines have noise

# In every encoding, each byte of this value is loud as the highest byte of a sample: audio shifted
# by one byte must not be taken for silence.
_AMPLITUDE: Final = 0.38736978
_ROW: Final = 32  # samples of the marker, and of the number's bits

Symbols = NDArray[np.int8]  # +1 and -1; 0 where a sample has another level


class Reading(NamedTuple):
    """Decoded block: its word in the transcript, and its number of samples."""

    word: str
    samples: int


class WordCodec:
    """Encodes words in one audio format. Raises ValueError if `word_ms` is too short."""

    def __init__(self, audio: AudioFormat, word_ms: float) -> None:
        self.samples: Final = round(audio.sample_rate * word_ms / 1000)
        if self.samples < 3 * _ROW:
            raise ValueError(f"a word of {word_ms} ms has fewer than {3 * _ROW} samples")
        noise = hashlib.shake_128(b"turnbus script").digest(self.samples // 8 + 1)
        bits = np.unpackbits(np.frombuffer(noise, np.uint8), count=self.samples)
        self._pattern: Symbols = _signs(bits)
        level = PcmDecoder(audio).decode(encode(np.full(1, _AMPLITUDE, np.float32), audio.encoding))
        self._level = level[0]

    def symbols(self, samples: NDArray[np.float32]) -> Symbols:
        """Return the symbol of each sample."""
        symbols: Symbols = (samples == self._level).view(np.int8)
        symbols -= (samples == -self._level).view(np.int8)
        return symbols

    def encode(self, number: int) -> Symbols:
        """Return the block of a word, 0 <= number < 2**32."""
        bits = _signs(np.unpackbits(np.frombuffer(number.to_bytes(4, "big"), np.uint8)))
        block = self._pattern.copy()
        body = block[_ROW:]
        rows = body[: len(body) // _ROW * _ROW].reshape(-1, _ROW)
        rows *= bits
        rest = body[rows.size :]
        rest *= bits[: len(rest)]
        return block

    def decode(self, block: Symbols) -> Reading:
        """Decode a block from the start of a sound; shorter than a word if the audio ended.

        An intact word is `w17`. A damaged one is `!17`, or `!?` without a readable number, and
        ends where the next marker begins.
        """
        rows = self._rows(block)
        if len(block) == self.samples:
            number = _number(rows[0])
            if np.array_equal(block, self.encode(number)):
                return Reading(f"w{number}", self.samples)
        # Two rows agree by chance once in 2**32.
        agree = np.all((rows[1:] == rows[:-1]) & (rows[1:] != 0), axis=1)
        found = np.flatnonzero(agree)
        word = f"!{_number(rows[found[0]])}" if len(found) else "!?"
        return Reading(word, self._damage_ends(block, aligned=bool(len(agree) and agree[-1])))

    def _rows(self, block: Symbols) -> Symbols:
        plain = block[_ROW:] * self._pattern[_ROW : len(block)]
        count = len(plain) // _ROW
        return plain[: count * _ROW].reshape(count, _ROW)

    def _damage_ends(self, block: Symbols, *, aligned: bool) -> int:
        """Return where the next word may begin, after a block that is not aligned."""
        if aligned:
            return len(block)
        if len(block) > _ROW:
            windows = np.lib.stride_tricks.sliding_window_view(block[1:], _ROW)
            markers = np.flatnonzero(np.all(windows == self._pattern[:_ROW], axis=1))
            if len(markers):
                return int(markers[0]) + 1
        if len(block) == self.samples and block[-1] != 0:
            return self.samples - _ROW + 1  # a marker may have begun, but not ended
        return len(block)


def _signs(bits: NDArray[np.uint8]) -> Symbols:
    return bits.view(np.int8) * np.int8(2) - np.int8(1)


def _number(row: Symbols) -> int:
    return int.from_bytes(np.packbits(row > 0).tobytes(), "big")


@functools.lru_cache(maxsize=64)
def word_codec(audio: AudioFormat, word_ms: float = WORD_MS) -> WordCodec:
    """Return the shared codec of an audio format."""
    return WordCodec(audio, word_ms)


def synthesize_words(
    words: Iterable[int], audio: AudioFormat, *, word_ms: float = WORD_MS
) -> bytes:
    """Return the audio of words, each 0 <= number < 2**32, without silence between them."""
    how = word_codec(audio, word_ms)
    blocks = [how.encode(number) for number in words]
    if not blocks:
        return b""
    return encode(np.concatenate(blocks).astype(np.float32) * _AMPLITUDE, audio.encoding)


def synthesize_silence(ms: float, audio: AudioFormat) -> bytes:
    """Return `ms` milliseconds of silence."""
    return silence(round(audio.sample_rate * ms / 1000), audio.encoding)


_WORD: Final = re.compile(r"w[0-9]+|![0-9]+|!\?")


def split_words(transcript: str, *, spaced: bool = True) -> list[str]:
    """Split a transcript into words, with or without space between them."""
    return transcript.split() if spaced else _WORD.findall(transcript)


def words_of(transcript: str, *, spaced: bool = True) -> list[int | str]:
    """Decode a transcript: the number of each intact word, reworded or not, or its text.

    `words_of(text) == [1, 2, 3]` proves that these words were received without damage.
    """
    return [_intact(word) for word in split_words(transcript, spaced=spaced)]


def _intact(word: str) -> int | str:
    digits = word.removeprefix("w").removesuffix("~")
    return int(digits) if digits.isascii() and digits.isdigit() else word
