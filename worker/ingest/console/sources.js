/**
 * Where audio comes from: the microphone, or a sound file that is sent in real time.
 *
 * A source calls `take(chunk)` every 100 ms. `stop()` resolves when the last chunk was taken.
 *
 * @typedef {(chunk: import("./audio.js").Chunk) => void} Take
 * @typedef {{stop: () => Promise<void>}} Source
 */

import { CHUNK_MS, Chunker, SAMPLE_RATE, toMono } from "./audio.js";

const MAX_FILE_BYTES = 200 * 1024 * 1024;

/** A source that cannot be used. The message says why and what to do. */
export class SourceError extends Error {}

/** @returns {string} why the microphone cannot be used here; empty if it can */
export function microphoneMissing() {
  if (!window.isSecureContext) {
    return "The browser gives the microphone to https:// and http://localhost only. A file works here.";
  }
  return navigator.mediaDevices?.getUserMedia ? "" : "This browser has no microphone access. A file works here.";
}

const REFUSALS = {
  NotAllowedError: "The microphone is blocked. Allow it in the browser's site settings, then start again.",
  NotFoundError: "No microphone was found. Connect one, or choose a file.",
  NotReadableError: "Another program holds the microphone. Close it, then start again.",
};

/**
 * @param {Take} take
 * @param {() => void} lost called if the device goes away
 * @returns {Promise<Source>}
 */
export async function openMicrophone(take, lost) {
  let stream;
  try {
    const audio = { channelCount: 1, echoCancellation: true };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new SourceError(REFUSALS[error.name] ?? `The microphone did not open: ${error.message}`);
  }
  const { context, input } = connected(stream);
  const release = () => {
    stream.getTracks().forEach((track) => track.stop());
    return context.close();
  };
  try {
    await context.audioWorklet.addModule("worklet.js");
  } catch {
    await release();
    throw new SourceError("A part of the page did not load. Is the gateway running?");
  }
  await context.resume();
  const node = new AudioWorkletNode(context, "chunks", {
    numberOfOutputs: 0,
    channelCount: 1,
    channelCountMode: "explicit",
  });
  const flushed = new Promise((resolve) => {
    node.port.onmessage = ({ data }) => (data ? take(data) : resolve(data));
  });
  stream.getAudioTracks()[0].onended = lost;
  input.connect(node);
  const close = async () => {
    node.port.postMessage("flush");
    await flushed;
    await release();
  };
  /** @type {Promise<void> | undefined} */
  let closed;
  return { stop: () => (closed ??= close()) };
}

/**
 * Connect at 16 kHz, or at the device's rate where the browser does not change it (Firefox).
 *
 * @param {MediaStream} stream
 */
function connected(stream) {
  const context = new AudioContext({ sampleRate: SAMPLE_RATE });
  try {
    return { context, input: context.createMediaStreamSource(stream) };
  } catch {
    context.close();
    const native = new AudioContext();
    return { context: native, input: native.createMediaStreamSource(stream) };
  }
}

/** @param {File} file @returns {Promise<import("./audio.js").Chunk[]>} */
export async function readFile(file) {
  if (file.size > MAX_FILE_BYTES) {
    throw new SourceError(`${file.name} has over 200 MiB. Send it with: turnbus push`);
  }
  let sound;
  try {
    const decoder = new OfflineAudioContext(1, 1, SAMPLE_RATE);
    sound = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new SourceError(`The browser finds no sound that it can decode in ${file.name}.`);
  }
  const channels = Array.from({ length: sound.numberOfChannels }, (_, index) => sound.getChannelData(index));
  const chunker = new Chunker();
  return [...chunker.push(toMono(channels)), ...chunker.flush()];
}

/**
 * Send the chunks of a file as a speaker would. The clock decides how many are due, so that a timer
 * that the browser slows down in a hidden tab changes nothing.
 *
 * @param {import("./audio.js").Chunk[]} chunks
 * @param {number} speed 1 is real time
 * @param {Take} take
 * @param {() => void} finished called after the last chunk, unless the source was stopped
 * @returns {Source}
 */
export function playChunks(chunks, speed, take, finished) {
  const began = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    const due = Math.floor(((performance.now() - began) * speed) / CHUNK_MS);
    while (sent < Math.min(due, chunks.length)) take(chunks[sent++]);
    if (sent === chunks.length) {
      clearInterval(timer);
      finished();
    }
  }, CHUNK_MS / speed);
  return {
    async stop() {
      clearInterval(timer);
    },
  };
}
