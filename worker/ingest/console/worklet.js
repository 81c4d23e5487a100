/** Runs on the audio thread: microphone samples in, chunks of 100 ms out. */

import { Chunker, Resampler, SAMPLE_RATE } from "./audio.js";

class ChunkProcessor extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, SAMPLE_RATE);
  #chunker = new Chunker();
  #stopped = false;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#post([...this.#chunker.push(this.#resampler.flush()), ...this.#chunker.flush()]);
      this.#stopped = true;
      this.port.postMessage(null);
    };
  }

  /** @param {Float32Array[][]} inputs @returns {boolean} whether to be called again */
  process(inputs) {
    const [samples] = inputs[0];
    if (samples && !this.#stopped) this.#post(this.#chunker.push(this.#resampler.push(samples)));
    return !this.#stopped;
  }

  /** @param {import("./audio.js").Chunk[]} chunks */
  #post(chunks) {
    for (const chunk of chunks) this.port.postMessage(chunk, [chunk.audio]);
  }
}

registerProcessor("chunks", ChunkProcessor);
