/**
 * One call: a WebSocket to `/raw` that is opened again, for the same session, when it is lost.
 *
 * Messages wait while there is no socket, so a short loss costs no audio.
 *
 * @typedef {object} Listener
 * @property {(sessions: string[]) => void} opened the gateway took the call, or took it back
 * @property {(event: import("./turns.js").TurnEvent) => void} event
 * @property {() => void} reconnecting
 * @property {(outcome: Outcome) => void} closed the last call of all
 *
 * @typedef {object} Outcome
 * @property {boolean} failed
 * @property {string} text
 */

import { SAMPLE_RATE } from "./audio.js";

/** The gateway waits this long for a lost call to return (`TURNBUS_INGEST_GRACE_S`). */
const GRACE_MS = 5000;
const RETRY_MS = 500;
const CLOSED_BY_GATEWAY = 1001;
/** Status for a plain request that nothing else is wrong with. */
const UPGRADE_REQUIRED = 426;
const FINAL_CODES = { 1008: "The gateway refused the call", 1009: "The gateway found a message too big" };
const ADVICE = "Is the gateway running? Is the token right and unexpired? Is the session id in use? Its log says which.";

export class Call {
  #session;
  #token;
  #listener;
  /** @type {WebSocket} */
  #socket;
  /** @type {(ArrayBuffer | string)[]} */
  #waiting = [];
  /** @type {number | null} time of the loss; null while the call is connected */
  #lostAt = null;
  #accepted = false;
  #ending = false;

  /**
   * @param {string} session empty: the token names it
   * @param {string} token empty: none
   * @param {Listener} listener
   */
  constructor(session, token, listener) {
    this.#session = session;
    this.#token = token;
    this.#listener = listener;
    this.#open();
  }

  /** @param {ArrayBuffer} audio */
  sendAudio(audio) {
    this.#send(audio);
  }

  /** @param {Record<string, unknown>} message a mark, a forced end */
  sendText(message) {
    this.#send(JSON.stringify(message));
  }

  /** End the session behind the audio so far. `closed` follows. */
  end() {
    if (this.#ending) return;
    this.sendText({ end: true });
    this.#ending = true;
  }

  #path() {
    const query = new URLSearchParams({ encoding: "pcm_s16le", sample_rate: String(SAMPLE_RATE), events: "1" });
    if (this.#session) query.set("session", this.#session);
    if (this.#token) query.set("token", this.#token);
    return `/raw?${query}`;
  }

  #open() {
    const url = new URL(this.#path(), location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.#socket = new WebSocket(url);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  /** @param {ArrayBuffer | string} message */
  #send(message) {
    if (this.#ending) return;
    this.#waiting.push(message);
    this.#flush();
  }

  #flush() {
    if (this.#lostAt !== null || !this.#accepted) return;
    for (const message of this.#waiting.splice(0)) this.#socket.send(message);
  }

  #receive(message) {
    if (message.type !== "ingest.opened") {
      this.#listener.event(message);
      return;
    }
    [this.#session] = message.sessions;
    this.#accepted = true;
    this.#lostAt = null;
    this.#listener.opened(message.sessions);
    this.#flush();
  }

  /** @param {number} code @param {string} reason */
  async #closed(code, reason) {
    if (code === 1000) {
      this.#listener.closed({ failed: false, text: "The session has ended." });
    } else if (code in FINAL_CODES) {
      this.#listener.closed({ failed: true, text: `${FINAL_CODES[code]}: ${reason || `close code ${code}`}.` });
    } else if (!this.#accepted) {
      this.#listener.closed({ failed: true, text: await this.#refusal() });
    } else if (this.#ending && !this.#waiting.length) {
      this.#listener.closed({ failed: true, text: "The gateway went away while the session ended. It ends the session itself." });
    } else {
      this.#retry(code);
    }
  }

  /** @param {number} code */
  #retry(code) {
    const now = performance.now();
    if (this.#lostAt === null) {
      this.#lostAt = now;
      this.#listener.reconnecting();
    }
    if (now - this.#lostAt + RETRY_MS < GRACE_MS) {
      setTimeout(() => this.#open(), RETRY_MS);
      return;
    }
    const cause = code === CLOSED_BY_GATEWAY ? "The gateway shut down" : "The gateway did not answer for 5 s";
    this.#listener.closed({ failed: true, text: `${cause}: the session ends there.` });
  }

  /** A WebSocket does not show the status of its refusal: a plain request for the same path does. */
  async #refusal() {
    try {
      const response = await fetch(this.#path(), { cache: "no-store", signal: AbortSignal.timeout(2000) });
      const text = (await response.text()).trim().slice(0, 300);
      if (response.status >= 400 && response.status !== UPGRADE_REQUIRED) {
        return `The gateway refused the call (${response.status}): ${text}`;
      }
    } catch {
      // No answer at all: the advice names this case first.
    }
    return `The gateway did not open the call. ${ADVICE}`;
  }
}
