"""First bytes of files: which are sound files, and which lengths in them are usable."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pcm import Encoding
from tests.support.sounds import UNKNOWN, aiff, au, encoded, pcm, rf64, tone, wav
from worker.local.pcm import encode
from worker.local.sound_headers import is_file, mended


def encoded_bytes(codec: str, container: str, rate: int, **options: Any) -> bytes:
    target = BytesIO()
    encoded(target, tone(rate), rate, codec, container=container, **options)
    return target.getvalue()


WITHOUT_TAG = {"write_id3v2": "0", "write_xing": "0"}
FILES = {
    "wav": wav(pcm(tone(16_000)), 16_000),
    "rf64": rf64(pcm(tone(16_000)), 16_000),
    "aiff": aiff(pcm(tone(16_000), ">i2"), 16_000),
    "au": au(pcm(tone(16_000), ">i2"), 16_000),
    "w64": encoded_bytes("pcm_s16le", "w64", 16_000),
    "caf": encoded_bytes("pcm_s16be", "caf", 16_000),
    "flac": encoded_bytes("flac", "flac", 16_000),
    "ogg": encoded_bytes("libopus", "ogg", 48_000),
    "webm": encoded_bytes("libopus", "webm", 48_000),
    "mp4": encoded_bytes("aac", "mp4", 44_100),
    "mp3 with a tag": encoded_bytes("libmp3lame", "mp3", 44_100),
    "mp3 at 44.1 kHz": encoded_bytes("libmp3lame", "mp3", 44_100, options=WITHOUT_TAG),
    "mp3 at 22.05 kHz": encoded_bytes("libmp3lame", "mp3", 22_050, options=WITHOUT_TAG),
    "mp3 at 8 kHz": encoded_bytes("libmp3lame", "mp3", 8_000, options=WITHOUT_TAG),
    "mp2": encoded_bytes("mp2", "mp2", 48_000),
    "aac": encoded_bytes("aac", "adts", 44_100),
    "transport stream": encoded_bytes("aac", "mpegts", 44_100),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "html": b"<!DOCTYPE html><html><title>404</title></html>",
    "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
}


@pytest.mark.parametrize("kind", FILES)
def test_file_is_recognised_from_any_read_size(kind: str) -> None:
    head = FILES[kind]
    assert is_file(head) is True
    verdicts = [is_file(head[:length]) for length in range(min(len(head), 6_000))]
    assert verdicts[0] is None
    assert False not in verdicts


@pytest.mark.parametrize("rate", [8_000, 16_000])
@pytest.mark.parametrize("encoding", sorted(Encoding))
def test_raw_audio_is_not_recognised_as_file(encoding: str, rate: int) -> None:
    quiet = np.random.default_rng(1).normal(0, 0.0005, rate).astype(np.float32)
    for samples in (tone(rate), tone(rate, hz=50), quiet, np.zeros(rate, np.float32)):
        raw = encode(samples, encoding)
        assert [is_file(raw[at:]) for at in range(0, 4_000, 4)] == [False] * 1_000


@given(st.binary(max_size=6_000))
def test_any_bytes_are_accepted(head: bytes) -> None:
    assert is_file(head) in (None, False, True)
    assert len(mended(head)) == len(head)


@pytest.mark.parametrize("kind", FILES)
def test_correct_lengths_are_kept(kind: str) -> None:
    assert mended(FILES[kind]) == FILES[kind]


@given(st.sampled_from(sorted(FILES)), st.integers(0, 200))
def test_truncated_header_is_kept(kind: str, length: int) -> None:
    assert mended(FILES[kind][:length]) == FILES[kind][:length]


@pytest.mark.parametrize("name", [b"LIST", b"bext"])
@pytest.mark.parametrize("length", [1 << 20, 1_900_000_000, UNKNOWN])
def test_large_tags_are_skipped(name: bytes, length: int) -> None:
    tag = length.to_bytes(4, "little") + b"INFO"
    small = name + (4).to_bytes(4, "little") + b"INFO"
    head = FILES["wav"][:12] + small + name + tag
    left = name if length == 1 << 20 else b"junk"
    assert mended(head) == FILES["wav"][:12] + small + left + tag


@pytest.mark.parametrize("length", [0, UNKNOWN])
def test_lengths_of_unfinished_recording_are_repaired(length: int) -> None:
    data = pcm(tone(16_000), ">i2")
    broken = aiff(data, 16_000, frames=length, length=length)
    head = mended(broken)
    assert len(head) == len(broken)
    assert int.from_bytes(head[4:8], signed=True) > len(data)
    at = head.index(b"SSND") + 4
    assert int.from_bytes(head[at : at + 4], signed=True) > len(data)
    assert mended(au(data, 16_000, length=0)) == au(data, 16_000, length=UNKNOWN)
