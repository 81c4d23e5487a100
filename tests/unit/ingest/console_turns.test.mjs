// Tests of the pure modules. `test_console.py` copies them beside the page and runs them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Chunker, Resampler, SAMPLE_RATE, toMono, toS16 } from "./audio.js";
import { Conversation, SequenceCheck, SoundClock, agentState, medianEndMs } from "./turns.js";

const tone = (rate, hertz, count) =>
  Float32Array.from({ length: count }, (_, index) => Math.sin((2 * Math.PI * hertz * index) / rate));

const level = (samples) => Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);

function resampled(rate, samples, part) {
  const resampler = new Resampler(rate, SAMPLE_RATE);
  const output = [];
  for (let read = 0; read < samples.length; read += part) output.push(...resampler.push(samples.subarray(read, read + part)));
  output.push(...resampler.flush());
  return Float32Array.from(output);
}

test("samples become s16le and are clipped", () => {
  const view = new DataView(toS16(Float32Array.of(0, 1, -1, 2, -2, 0.5)));
  const values = Array.from({ length: 6 }, (_, index) => view.getInt16(index * 2, true));
  assert.deepEqual(values, [0, 32767, -32767, 32767, -32767, 16384]);
});

test("channels are mixed to their mean", () => {
  assert.deepEqual(toMono([Float32Array.of(1, 0), Float32Array.of(0, -1)]), Float32Array.of(0.5, -0.5));
});

test("chunks have 100 ms and lose no sample", () => {
  const samples = tone(SAMPLE_RATE, 440, 16128 + 7);
  for (const part of [1, 128, 1600, 5000, samples.length]) {
    const chunker = new Chunker();
    const chunks = [];
    for (let read = 0; read < samples.length; read += part) chunks.push(...chunker.push(samples.subarray(read, read + part)));
    assert.ok(chunks.every(({ audio }) => audio.byteLength === 3200));
    chunks.push(...chunker.flush());
    const bytes = Buffer.concat(chunks.map(({ audio }) => Buffer.from(audio)));
    assert.deepEqual(bytes, Buffer.from(toS16(samples)));
    assert.deepEqual(chunker.flush(), []);
  }
});

test("a chunk has the level of its samples", () => {
  const [{ rms }] = new Chunker().push(tone(SAMPLE_RATE, 100, 1600));
  assert.ok(Math.abs(rms - Math.SQRT1_2) < 0.001);
});

for (const rate of [8000, 16000, 22050, 44100, 48000, 96000]) {
  test(`${rate} Hz is resampled to the same length, whatever the parts`, () => {
    const samples = tone(rate, 440, rate);
    const whole = resampled(rate, samples, samples.length);
    assert.ok(Math.abs(whole.length - SAMPLE_RATE) <= 2, `${whole.length} samples`);
    const parts = resampled(rate, samples, 128);
    assert.equal(parts.length, whole.length);
    assert.ok(parts.every((sample, index) => Math.abs(sample - whole[index]) < 1e-4));
  });
}

test("speech passes the resampler unchanged, and what cannot be kept is removed", () => {
  const middle = (samples) => samples.subarray(200, -200);
  const expected = tone(SAMPLE_RATE, 1000, SAMPLE_RATE);
  const kept = resampled(48000, tone(48000, 1000, 48000), 128);
  const error = middle(kept).map((sample, index) => sample - middle(expected)[index]);
  assert.ok(level(error) < 0.01, `error ${level(error)}`);
  assert.ok(level(middle(resampled(48000, tone(48000, 12000, 48000), 128))) < 0.01);
});

let seq = 0;
const event = (type, fields = {}) => ({
  type, session: "s", run: "1-0", seq: ++seq, audio_ms: 0, request_id: "r1", connection: 1, ...fields,
});

/** Apply events with their times; return the conversation and all notes. */
function played(events, sound = new SoundClock()) {
  const conversation = new Conversation();
  const notes = events.flatMap(([now, item]) => conversation.apply(item, now, sound).notes);
  return { conversation, notes };
}

const turn = (type, transcript, fields = {}) => event(`turn.${type}`, { turn: 0, transcript, ...fields });

test("a turn grows, is probably done, resumes and ends", () => {
  const conversation = new Conversation();
  const sound = new SoundClock();
  sound.add(1000, 0.2);
  const steps = [
    [1300, turn("start"), "speaking", ""],
    [1500, turn("update", "so"), "speaking", "so"],
    [2000, turn("eager_end", "so I"), "probably done", "so I"],
    [2200, turn("resume"), "speaking", "so I"],
    [2900, turn("end", "so I went", { reason: "model" }), "done", "so I went"],
  ];
  for (const [now, item, state, text] of steps) {
    const shown = conversation.apply(item, now, sound).turn;
    assert.deepEqual([shown.state, shown.text], [state, text]);
    if (state === "speaking") sound.add(now, 0.2);
  }
  const [only] = conversation.turns;
  assert.deepEqual(only.pauses, [{ from: 2000, to: 2200 }]);
  assert.equal(only.resumes, 1);
  assert.equal(only.reason, "model");
  assert.equal(only.firstWordMs, 600); // the sound began at 900
  assert.equal(only.endMs, 700); // the last sound was at 2200
  assert.equal(medianEndMs(conversation.turns), 700);
});

test("a new socket is noted, and shown words stay while it catches up", () => {
  const later = { connection: 2, request_id: "r2" };
  const { conversation, notes } = played([
    [0, turn("start")],
    [1, turn("update", "one two three")],
    [2, turn("update", "one two", later)],
  ]);
  assert.equal(conversation.turns[0].text, "one two three");
  assert.deepEqual(conversation.turns[0].connections, [1, 2]);
  assert.deepEqual(notes.filter(({ kind }) => kind === "socket").map(({ label }) => label), ["socket 1", "socket 2"]);
  conversation.apply(turn("end", "one two for", { ...later, reason: "model" }), 3, new SoundClock());
  assert.equal(conversation.turns[0].text, "one two for");
});

test("the first sound of a turn is not before the end of the turn before", () => {
  const sound = new SoundClock();
  for (let now = 100; now <= 1000; now += 100) sound.add(now, 0.2);
  const { conversation } = played(
    [[400, turn("start")], [600, turn("end", "a", { reason: "forced" })], [700, event("turn.start", { turn: 1 })]],
    sound,
  );
  assert.deepEqual(conversation.turns.map(({ onsetAt }) => onsetAt), [0, 600]);
});

for (const [name, end, lastSoundAt] of [
  ["is forced", { reason: "forced" }, 1000],
  ["comes with the end of the session", { reason: "close" }, 1000],
  ["comes from a second socket", { reason: "model", connection: 2, request_id: "r2" }, 1000],
  ["comes while the sound goes on", { reason: "model" }, 1950],
  ["comes without any sound", { reason: "model" }, null],
]) {
  test(`an end that ${name} has no latency`, () => {
    const sound = new SoundClock();
    if (lastSoundAt !== null) sound.add(lastSoundAt, 0.2);
    const { conversation } = played([[900, turn("start")], [2000, turn("end", "a", end)]], sound);
    assert.equal(conversation.turns[0].endMs, null);
    assert.equal(medianEndMs(conversation.turns), null);
  });
}

test("a pause begins a new stretch of sound, silence none", () => {
  const sound = new SoundClock();
  assert.equal(sound.add(100, 0.001), false);
  assert.equal(sound.beganAt, null);
  for (const now of [200, 300, 600, 1100]) assert.ok(sound.add(now, 0.1));
  assert.deepEqual([sound.beganAt, sound.lastAt], [1000, 1100]);
});

test("marks, gaps, errors and the end are noted, unknown types are not", () => {
  const { conversation, notes } = played([
    [0, event("session.started", { worker: "worker-1", connection: 0 })],
    [1, event("session.mark", { mark: { dtmf: "5" }, connection: 0 })],
    [2, event("session.mark", { mark: { step: 1 }, connection: 0 })],
    [3, event("audio.gap", { missing_ms: 200, reason: "producer", connection: 0 })],
    [4, event("session.error", { code: "stt_unavailable", message: "HTTP 503", connection: 0 })],
    [5, event("session.later", { connection: 0 })],
    [6, event("session.ended", { reason: "end", turns: 0, connection: 0 })],
  ]);
  assert.equal(conversation.worker, "worker-1");
  assert.deepEqual(conversation.turns, []);
  assert.deepEqual(notes.map(({ kind, label }) => [kind, label]), [
    ["mark", "key 5"], ["mark", "mark"], ["gap", "gap"], ["error", "error"], ["ended", "ended"],
  ]);
});

test("an agent follows the turns", () => {
  assert.equal(agentState([]), "waits");
  const states = [turn("start"), turn("eager_end", "a"), turn("resume"), turn("end", "a", { reason: "model" })];
  const conversation = new Conversation();
  const agent = states.map((item) => {
    conversation.apply(item, 0, new SoundClock());
    return agentState(conversation.turns);
  });
  assert.deepEqual(agent, ["listens", "prepares its answer", "listens", "speaks"]);
});

test("the sequence check counts gaps and repeats", () => {
  const check = new SequenceCheck();
  const accepted = [1, 2, 2, 5, 6].map((number) => check.accept({ run: "1-0", seq: number }));
  assert.deepEqual(accepted, [true, true, false, true, true]);
  assert.deepEqual([check.events, check.gaps, check.repeats], [4, 2, 1]);
  assert.ok(check.accept({ run: "2-0", seq: 1 }));
  assert.deepEqual([check.events, check.gaps, check.repeats], [5, 2, 1]);
});

test("what a gateway sends again after a reconnect is no repeat", () => {
  const check = new SequenceCheck();
  for (const number of [1, 2, 3]) check.accept({ run: "1-0", seq: number });
  check.reconnected();
  for (const number of [1, 2, 3, 4, 4]) check.accept({ run: "1-0", seq: number });
  assert.deepEqual([check.events, check.gaps, check.repeats], [4, 0, 1]);
});
