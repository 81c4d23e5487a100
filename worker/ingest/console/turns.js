/**
 * What the page shows of a session, computed from its events. Pure: no page and no clock; the
 * caller passes the time in milliseconds.
 *
 * @typedef {object} TurnEvent an event of docs/protocol.md
 * @property {string} type
 * @property {string} run
 * @property {number} seq
 * @property {number} audio_ms
 * @property {string} request_id
 * @property {number} connection
 * @property {string} [worker]
 * @property {number} [turn]
 * @property {string} [transcript]
 * @property {string} [reason]
 * @property {Record<string, unknown>} [mark]
 * @property {number} [missing_ms]
 * @property {string} [code]
 * @property {string} [message]
 * @property {boolean} [fatal]
 *
 * @typedef {"speaking" | "probably done" | "done"} TurnState
 *
 * @typedef {object} Turn
 * @property {number} number
 * @property {TurnState} state
 * @property {string} text
 * @property {number} startedAt time of `turn.start`
 * @property {number} onsetAt time of the first sound of the turn
 * @property {number[]} connections sockets that its events came from, in order
 * @property {{from: number, to: number | null}[]} pauses from each `turn.eager_end` to what followed
 * @property {number} resumes
 * @property {number | null} endedAt
 * @property {number | null} firstWordMs from the first sound to the first word
 * @property {number | null} endMs from the last sound to `turn.end`; null if that says nothing
 * @property {string} reason empty until the end
 *
 * @typedef {"start" | "socket" | "mark" | "gap" | "error" | "ended"} NoteKind
 * @typedef {{kind: NoteKind, text: string, label: string}} Note `label` is short, for the timeline
 * @typedef {{turn: Turn | null, notes: Note[]}} Change
 */

import { CHUNK_MS } from "./audio.js";

/** Chunks that are louder than this have sound: -40 dB of full scale. */
const SOUND_RMS = 0.01;
/** A shorter silence does not begin a new stretch of sound. */
const PAUSE_MS = 300;

/** When there was sound, by the page's clock. */
export class SoundClock {
  /** @type {number | null} */
  beganAt = null;
  /** @type {number | null} */
  lastAt = null;

  /** @param {number} now @param {number} rms @returns {boolean} whether the chunk has sound */
  add(now, rms) {
    if (rms < SOUND_RMS) return false;
    if (this.lastAt === null || now - CHUNK_MS - this.lastAt > PAUSE_MS) this.beganAt = now - CHUNK_MS;
    this.lastAt = now;
    return true;
  }
}

/** Checks that `seq` rises by 1 in a run, and drops what the page has seen. */
export class SequenceCheck {
  events = 0;
  gaps = 0;
  repeats = 0;
  #run = "";
  #last = 0;
  #returning = false;

  /** After a reconnect the gateway may send again what the page has: no repeat of the stream. */
  reconnected() {
    this.#returning = true;
  }

  /** @param {TurnEvent} event @returns {boolean} whether the event is new */
  accept({ run, seq }) {
    if (run !== this.#run) {
      this.#run = run;
      this.#last = 0;
    }
    if (seq <= this.#last) {
      if (!this.#returning) this.repeats++;
      return false;
    }
    this.#returning = false;
    this.gaps += seq - this.#last - 1;
    this.#last = seq;
    this.events++;
    return true;
  }
}

/** The turns of one session, and which worker and socket they come from. */
export class Conversation {
  /** @type {Turn[]} in the order of their start */
  turns = [];
  worker = "";
  connection = 0;
  requestId = "";
  audioMs = 0;

  /**
   * @param {TurnEvent} event
   * @param {number} now
   * @param {SoundClock} sound
   * @returns {Change}
   */
  apply(event, now, sound) {
    const notes = this.#moved(event);
    const note = noteOf(event);
    if (note) notes.push(note);
    if (event.type === "session.started") this.worker = event.worker;
    if (event.turn === undefined) return { turn: null, notes };
    const turn = this.#turnOf(event, now, sound);
    if (turn.connections.at(-1) !== event.connection) turn.connections.push(event.connection);
    APPLY[event.type]?.(turn, event, now, sound);
    return { turn, notes };
  }

  /** @param {TurnEvent} event @returns {Note[]} */
  #moved(event) {
    this.audioMs = event.audio_ms;
    if (event.connection === this.connection) return [];
    this.connection = event.connection;
    this.requestId = event.request_id;
    const text = `socket ${event.connection} of this session (${event.request_id})`;
    return [{ kind: "socket", text, label: `socket ${event.connection}` }];
  }

  /** @param {TurnEvent} event @param {number} now @param {SoundClock} sound @returns {Turn} */
  #turnOf(event, now, sound) {
    const known = this.turns.findLast((turn) => turn.number === event.turn);
    if (known) return known;
    const previousEnd = this.turns.at(-1)?.endedAt ?? 0;
    /** @type {Turn} */
    const turn = {
      number: event.turn,
      state: "speaking",
      text: "",
      startedAt: now,
      onsetAt: Math.max(sound.beganAt ?? now, previousEnd),
      connections: [],
      pauses: [],
      resumes: 0,
      endedAt: null,
      firstWordMs: null,
      endMs: null,
      reason: "",
    };
    this.turns.push(turn);
    return turn;
  }
}

/** @type {Record<string, (turn: Turn, event: TurnEvent, now: number, sound: SoundClock) => void>} */
const APPLY = {
  "turn.update": (turn, event, now) => grow(turn, event.transcript, now),
  "turn.eager_end": (turn, event, now) => {
    grow(turn, event.transcript, now);
    turn.state = "probably done";
    turn.pauses.push({ from: now, to: null });
  },
  "turn.resume": (turn, event, now) => {
    closePause(turn, now);
    turn.state = "speaking";
    turn.resumes++;
  },
  "turn.end": (turn, event, now, sound) => {
    closePause(turn, now);
    turn.firstWordMs ??= event.transcript.trim() ? now - turn.onsetAt : null;
    turn.text = event.transcript;
    turn.state = "done";
    turn.reason = event.reason;
    turn.endedAt = now;
    turn.endMs = endLatencyMs(turn, now, sound);
  },
};

/**
 * Take a longer text. A new socket transcribes the open turn again from its beginning: while it
 * catches up, the words that are shown stay.
 *
 * @param {Turn} turn @param {string} transcript @param {number} now
 */
function grow(turn, transcript, now) {
  if (turn.text.startsWith(transcript)) return;
  turn.text = transcript;
  if (transcript.trim()) turn.firstWordMs ??= now - turn.onsetAt;
}

/**
 * Only an end that the model chose has a latency. A replayed turn ends as late as its worker was
 * replaced. If the sound goes on, the last sound of the turn is not known.
 *
 * @param {Turn} turn @param {number} now @param {SoundClock} sound @returns {number | null}
 */
function endLatencyMs({ reason, connections }, now, sound) {
  if (reason !== "model" || connections.length > 1 || sound.lastAt === null) return null;
  const endMs = now - sound.lastAt;
  return endMs > CHUNK_MS ? endMs : null;
}

/** @param {Turn} turn @param {number} now */
function closePause(turn, now) {
  const last = turn.pauses.at(-1);
  if (last) last.to ??= now;
}

/** @param {TurnEvent} event @returns {Note | null} what the log and the timeline say of it */
function noteOf(event) {
  switch (event.type) {
    case "turn.start":
      return { kind: "start", text: "turn.start: an agent stops speaking here", label: "" };
    case "session.mark":
      return { kind: "mark", text: `mark ${JSON.stringify(event.mark)}`, label: markLabel(event.mark) };
    case "audio.gap":
      return { kind: "gap", text: `${event.missing_ms} ms of audio are missing (${event.reason})`, label: "gap" };
    case "session.error":
      return { kind: "error", text: `${event.code}: ${event.message}`, label: "error" };
    case "session.ended":
      return { kind: "ended", text: `session.ended (${event.reason})`, label: "ended" };
    default:
      return null;
  }
}

/** @param {Record<string, unknown>} mark @returns {string} the key of a DTMF mark, or a short word */
function markLabel(mark) {
  return typeof mark?.dtmf === "string" ? `key ${mark.dtmf.slice(0, 4)}` : "mark";
}

/** @param {Turn[]} turns @returns {string} what a voice agent does at this point of the turns */
export function agentState(turns) {
  const turn = turns.at(-1);
  if (!turn) return "waits";
  if (turn.state === "done") return "speaks";
  return turn.state === "speaking" ? "listens" : "prepares its answer";
}

/** @param {Turn[]} turns @returns {number | null} the median of the end latencies */
export function medianEndMs(turns) {
  const sorted = turns.flatMap((turn) => turn.endMs ?? []).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : null;
}
