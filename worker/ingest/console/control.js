/**
 * The control channel of `turnbus dev`: breaks parts on purpose and shows what runs.
 *
 * @typedef {"kill" | "cut" | "outage"} Break
 * @typedef {{id: string, state: "running" | "starting" | "killed", sessions: string[]}} WorkerState
 * @typedef {{workers: WorkerState[], provider: {state: "up" | "away"}, engine: "speech" | "script"}} DevState
 *
 * @typedef {object} ControlListener
 * @property {(state: DevState | null) => void} state null: the channel is lost or absent
 * @property {(did: Break, worker: string) => void} did
 * @property {(message: string) => void} failed
 */

const RETRY_MS = 1000;

export class Control {
  #listener;
  /** @type {WebSocket} */
  #socket;
  /** Whether this page was ever connected to the channel. */
  #present = false;

  /** @param {ControlListener} listener */
  constructor(listener) {
    this.#listener = listener;
    this.#open();
  }

  /** @param {Break} action @param {string} session */
  do(action, session) {
    if (this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ do: action, session }));
    }
  }

  #open() {
    const url = new URL("/control", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.#socket = new WebSocket(url);
    this.#socket.onopen = () => {
      this.#present = true;
    };
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = () => {
      this.#listener.state(null);
      // A channel that never opened does not exist: `turnbus ingest` has none.
      if (this.#present) setTimeout(() => this.#open(), RETRY_MS);
    };
  }

  #receive(message) {
    if (message.workers) this.#listener.state(message);
    else if (message.did) this.#listener.did(message.did, message.worker ?? "");
    else if (message.error) this.#listener.failed(message.error);
  }
}
