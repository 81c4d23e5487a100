"""Moonshine tiny-en, a speech recognizer of 26 million parameters, over its int8 weights.

English only. The weights are MIT licensed and part of `moonshine-voice`. The last version that
contains them is pinned. The code of that package is not used.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.local.emulator.engines.speech_audio import RATE, Samples
from worker.local.emulator.engines.speech_text import Tokens
from worker.local.emulator.engines.weights import PackagedFile, load_model

_REQUIREMENT: Final = "moonshine-voice==0.1.0"
_ENCODER: Final = PackagedFile(
    _REQUIREMENT,
    "moonshine_voice",
    "assets/tiny-en/encoder_model.ort",
    "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
)
_DECODER: Final = PackagedFile(
    _REQUIREMENT,
    "moonshine_voice",
    "assets/tiny-en/decoder_model_merged.ort",
    "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
)
_TOKENIZER: Final = PackagedFile(
    _REQUIREMENT,
    "moonshine_voice",
    "assets/tiny-en/tokenizer.bin",
    "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
)

_START: Final = 1
_END: Final = 2
_SPECIAL: Final = 3  # ids below are not text
_SPACE: Final = "\u2581"
_TOKENS_PER_SECOND: Final = 6.5  # faster than any speaker; stops a decoder that loops
_SHORTEST: Final = RATE // 10  # minimum samples for the encoder's convolutions


def _parse_vocabulary(content: bytes) -> list[bytes]:
    """Split tokenizer.bin: for each id a length (two bytes from 128 on), then the token."""
    vocabulary = []
    at = 0
    while at < len(content):
        length = content[at]
        at += 1
        if length >= 128:
            length += content[at] * 128 - 128
            at += 1
        vocabulary.append(content[at : at + length])
        at += length
    return vocabulary


class Moonshine:
    """The recognizer. Stateless between calls; `decode` may run in many threads at once.

    Raises MissingExtraError if the weights are not installed or not as expected.
    """

    def __init__(self) -> None:
        self._vocabulary = _parse_vocabulary(_TOKENIZER.locate().read_bytes())
        self._continues = np.array(
            [not self.starts_word(at) for at in range(len(self._vocabulary))]
        )
        self._continues[_END] = False
        self._encoder = load_model(_ENCODER)
        self._decoder = load_model(_DECODER)
        shapes = {entry.name: entry.shape for entry in self._decoder.get_inputs()}
        self._caches = [name for name in shapes if name.startswith("past_key_values.")]
        # The export represents "no cache yet" by a batch of size 0.
        self._empty = {
            name: np.zeros((0, shapes[name][1], 1, shapes[name][3]), np.float32)
            for name in self._caches
        }

    def decode(self, samples: Samples, spoken: Tokens = ()) -> Tokens:
        """Transcribe mono samples at `RATE`, continuing the whole words `spoken`.

        Returns all tokens, including `spoken`. Blocks for about 20 ms per second of audio. Keep
        the audio under 15 s: in longer audio the model may skip or invent sentences.
        """
        tokens = list(spoken)
        feed = self._encode(samples)
        feed["input_ids"] = np.array([[_START, *spoken]], np.int64)
        for _ in range(int(len(samples) / RATE * _TOKENS_PER_SECOND) + 1 - len(spoken)):
            logits, *caches = self._decoder.run(None, feed)
            scores = logits[0, -1]
            if spoken and len(tokens) == len(spoken):
                scores[self._continues] = -np.inf  # `spoken` are whole words
            token = int(scores.argmax())
            if token == _END:
                break
            tokens.append(token)
            fresh = dict(zip(self._caches, caches, strict=True))
            if feed["use_cache_branch"][0]:  # the encoder caches do not change
                fresh = {name: cache for name, cache in fresh.items() if ".decoder." in name}
            feed |= fresh
            feed["input_ids"] = np.array([[token]], np.int64)
            feed["use_cache_branch"] = np.array([True])
        return tuple(tokens)

    def _encode(self, samples: Samples) -> dict[str, NDArray[Any]]:
        """Return the first inputs of the decoder: the encoded audio and empty caches."""
        audio = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))[np.newaxis, :]
        mask = np.ones(audio.shape, np.int64)
        (hidden,) = self._encoder.run(None, {"input_values": audio, "attention_mask": mask})
        return {
            "encoder_hidden_states": hidden,
            "encoder_attention_mask": mask,  # per sample: the decoder downsamples it
            "use_cache_branch": np.array([False]),
            **self._empty,
        }

    def starts_word(self, token: int) -> bool:
        """Return whether a token begins a new word."""
        return self._vocabulary[token].startswith(_SPACE.encode())

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, with one space between words and none at the ends."""
        spelled = b"".join(self._vocabulary[token] for token in tokens if token >= _SPECIAL)
        return " ".join(spelled.decode(errors="replace").replace(_SPACE, " ").split())
