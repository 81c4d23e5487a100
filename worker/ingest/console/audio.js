/**
 * Samples to chunks of 100 ms, s16le. Pure: the worklet and the file player use it.
 *
 * @typedef {object} Chunk
 * @property {ArrayBuffer} audio s16le, mono, 16 kHz
 * @property {number} rms root mean square of the samples, 0 to 1
 */

export const SAMPLE_RATE = 16000;
export const CHUNK_MS = 100;
const CHUNK_SAMPLES = (SAMPLE_RATE * CHUNK_MS) / 1000;
const LOBES = 8;

/**
 * Changes the sample rate of a stream: a low-pass filter (windowed sinc), read between the samples.
 */
export class Resampler {
  #step;
  #cutoff;
  #reach;
  /** Samples that a later output still needs. */
  #kept;
  /** Place of the next output in `#kept`. */
  #place;

  /** @param {number} from @param {number} to both in Hz */
  constructor(from, to) {
    this.#step = from / to;
    this.#cutoff = Math.min(1, to / from);
    this.#reach = Math.ceil(LOBES / this.#cutoff);
    this.#kept = new Float32Array(this.#reach);
    this.#place = this.#reach;
  }

  /** @param {Float32Array} samples @returns {Float32Array} */
  push(samples) {
    if (this.#step === 1) return samples;
    const input = new Float32Array(this.#kept.length + samples.length);
    input.set(this.#kept);
    input.set(samples, this.#kept.length);
    const output = [];
    for (; this.#place + this.#reach < input.length; this.#place += this.#step) {
      output.push(this.#filtered(input, this.#place));
    }
    const done = Math.max(0, Math.floor(this.#place) - this.#reach);
    this.#kept = input.slice(done);
    this.#place -= done;
    return Float32Array.from(output);
  }

  /** @returns {Float32Array} the samples that waited for later ones */
  flush() {
    return this.#step === 1 ? new Float32Array() : this.push(new Float32Array(this.#reach));
  }

  /** @param {Float32Array} input @param {number} place */
  #filtered(input, place) {
    const last = Math.floor(place + this.#reach);
    let sum = 0;
    for (let index = Math.ceil(place - this.#reach); index <= last; index++) {
      const distance = index - place;
      const angle = Math.PI * distance * this.#cutoff;
      const sinc = angle === 0 ? 1 : Math.sin(angle) / angle;
      const hann = 0.5 + 0.5 * Math.cos((Math.PI * distance) / this.#reach);
      sum += input[index] * sinc * hann;
    }
    return sum * this.#cutoff;
  }
}

/** Collects samples of any number into chunks of 100 ms. */
export class Chunker {
  #samples = new Float32Array(CHUNK_SAMPLES);
  #filled = 0;

  /** @param {Float32Array} samples @returns {Chunk[]} */
  push(samples) {
    const chunks = [];
    for (let read = 0; read < samples.length; ) {
      const part = samples.subarray(read, read + CHUNK_SAMPLES - this.#filled);
      this.#samples.set(part, this.#filled);
      this.#filled += part.length;
      read += part.length;
      if (this.#filled === CHUNK_SAMPLES) chunks.push(...this.flush());
    }
    return chunks;
  }

  /** @returns {Chunk[]} the rest, shorter than 100 ms; none if there is no rest */
  flush() {
    const rest = this.#samples.subarray(0, this.#filled);
    this.#filled = 0;
    return rest.length ? [{ audio: toS16(rest), rms: rms(rest) }] : [];
  }
}

/** @param {Float32Array} samples */
function rms(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / samples.length);
}

/** @param {Float32Array} samples @returns {ArrayBuffer} */
export function toS16(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  samples.forEach((sample, index) => {
    const clipped = Math.max(-1, Math.min(1, sample));
    view.setInt16(index * 2, Math.round(clipped * 0x7fff), true);
  });
  return view.buffer;
}

/** @param {Float32Array[]} channels of one length @returns {Float32Array} their mean */
export function toMono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map(
    (_, index) => channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length,
  );
}
