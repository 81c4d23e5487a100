/** The console: connects a source of audio, the call, the control channel and the page. */

import { CHUNK_MS } from "./audio.js";
import { Call } from "./call.js";
import { Control } from "./control.js";
import { SourceError, microphoneMissing, openMicrophone, playChunks, readFile } from "./sources.js";
import { Timeline } from "./timeline.js";
import { TurnList, seconds } from "./turn_list.js";
import { Conversation, SequenceCheck, SoundClock, agentState, medianEndMs } from "./turns.js";

const KEYS = "123456789*0#";
const LOG_LINES = 200;
const BREAKS = /** @type {const} */ (["kill", "cut", "outage"]);

/** @param {string} id @returns {any} an element of index.html */
const element = (id) => document.getElementById(id);

const timeline = new Timeline(element("timeline"));
const turnList = new TurnList(element("turns"), element("turn-template"), element("announcer"));

/** What belongs to one session; a new one replaces it. */
class Session {
  conversation = new Conversation();
  sound = new SoundClock();
  check = new SequenceCheck();
  /** The owner, as the control channel or `session.started` last named it. */
  worker = "";
  id = "";
  sentMs = 0;
  startedAt = performance.now();
  live = true;
  /** Message of the error that ended the session. */
  #fatal = "";
  #ending = false;
  #lost = false;
  /** @type {Call} */
  call;
  /** @type {import("./sources.js").Source | null} */
  source = null;

  /** @param {string} id @param {string} token */
  constructor(id, token) {
    this.call = new Call(id, token, {
      opened: ([session]) => this.#opened(session),
      event: (event) => this.#take(event),
      reconnecting: () => this.#reconnecting(),
      closed: (outcome) => this.#closed(outcome),
    });
  }

  /** @param {import("./audio.js").Chunk} chunk */
  takeChunk({ audio, rms }) {
    const now = performance.now();
    const sound = this.sound.add(now, rms);
    this.sentMs += audio.byteLength / 32;
    this.call.sendAudio(audio);
    timeline.addLevel({ at: now, rms, sound });
    element("level").value = Math.max(0, 60 + 20 * Math.log10(rms || 1e-9));
    showFacts(this);
  }

  /** @param {string} key of a telephone */
  press(key) {
    this.call.sendText({ mark: { dtmf: key } });
    note("sent", `mark ${key} sent`);
  }

  endTurn() {
    this.call.sendText({ turn_end: true });
    note("forced", "end of the turn forced", "turn_end");
  }

  async end() {
    if (this.#ending) return;
    this.#ending = true;
    this.showStatus();
    setLive(false);
    await this.source?.stop();
    this.call.end();
  }

  /** @param {string} id */
  #opened(id) {
    if (this.id) note("socket", "the gateway took the call back", "back");
    this.id = id;
    this.#lost = false;
    this.showStatus();
    if (!this.#ending) setLive(true);
    showFacts(this);
  }

  #reconnecting() {
    this.check.reconnected();
    note("error", "the connection to the gateway is lost", "lost");
    this.#lost = true;
    this.showStatus();
  }

  /** What the session waits for; the first of these that holds. */
  showStatus() {
    if (!this.live) return;
    if (this.#lost) setStatus("busy", "Reconnecting: the audio waits in the page.");
    else if (providerAway) setStatus("busy", "The provider is away: the audio waits in Redis.");
    else if (this.#ending) setStatus("busy", "Ending: the last words are on their way.");
    else if (this.id) setStatus("live", "Live: speak.");
  }

  /** @param {import("./call.js").Outcome} outcome */
  async #closed({ failed, text }) {
    this.live = false;
    setLive(false);
    setStatus(failed || this.#fatal ? "error" : "idle", this.#fatal || text);
    note(failed ? "error" : "ended", text, failed ? "closed" : "");
    showFacts(this);
    await this.source?.stop();
    setBusy(false);
  }

  /** @param {import("./turns.js").TurnEvent} event */
  #take(event) {
    const now = performance.now();
    if (this.check.accept(event)) {
      const { turn, notes } = this.conversation.apply(event, now, this.sound);
      if (event.worker) this.worker = event.worker;
      if (event.fatal) this.#fatal = `The session failed: ${event.message}`;
      if (event.type === "session.ended") this.end();
      for (const { kind, text, label } of notes) note(kind, text, label);
      if (turn) {
        element("hint").hidden = true;
        turnList.show(turn);
      }
    }
    showFacts(this);
  }
}

/** @type {Session | null} */
let session = null;
/** Whether a session is on, or about to start. */
let busy = false;
/** As the control channel last said; false without one. */
let providerAway = false;

/** @param {string} kind @param {string} text */
function setStatus(kind, text) {
  const status = element("status");
  status.dataset.kind = kind;
  // A screen reader announces each change, also to the same text.
  if (status.textContent !== text) status.textContent = text;
}

/** @param {boolean} on */
function setBusy(on) {
  const isOver = busy && !on;
  busy = on;
  element("microphone").disabled = busy || microphoneMissing() !== "";
  for (const id of ["file", "speed", "session", "token"]) element(id).disabled = busy;
  element("drop").classList.toggle("off", busy);
  if (!busy) element("level").value = 0;
  if (isOver && document.activeElement === document.body) element("microphone").focus();
}

/** @param {boolean} live whether the session takes marks, forced ends and breaks */
function setLive(live) {
  const buttons = [element("end-turn"), element("end-session"), ...element("keypad").children];
  for (const button of [...buttons, ...BREAKS.map(element)]) button.disabled = !live;
  // Enter ends the turn: it must not press the button that started the session.
  if (live && document.activeElement === document.body) element("end-turn").focus();
}

/** @param {Session} shown */
function showFacts({ id, conversation, check, worker, sentMs, live }) {
  const { connection, requestId, audioMs, turns } = conversation;
  const last = turns.findLast((turn) => turn.endMs !== null);
  element("fact-session").textContent = id || "-";
  element("fact-worker").textContent = worker || "-";
  element("fact-socket").textContent = connection ? `${connection} (${requestId})` : "-";
  element("fact-audio").textContent = `${seconds(sentMs)} sent, ${seconds(audioMs)} at the provider`;
  element("fact-stream").textContent = `events ${check.events}, gaps ${check.gaps}, repeats ${check.repeats}`;
  element("fact-latency").textContent = last
    ? `${seconds(last.endMs)} after the last sound, median ${seconds(medianEndMs(turns))}`
    : "-";
  element("fact-agent").textContent = live ? agentState(turns) : "-";
}

/** @param {string} kind @param {string} text @param {string} [label] none: not in the timeline */
function note(kind, text, label) {
  const now = performance.now();
  const line = document.createElement("li");
  line.dataset.kind = kind;
  line.textContent = `${seconds(now - (session?.startedAt ?? now))}  ${text}`;
  const log = element("log");
  log.prepend(line);
  while (log.children.length > LOG_LINES) log.lastElementChild.remove();
  if (label !== undefined) timeline.addMarker({ at: now, kind, label });
}

/**
 * Start a session with the audio of a source.
 *
 * @param {string} wait what the page waits for before the session
 * @param {() => Promise<(session: Session) => import("./sources.js").Source>} prepare
 */
async function start(wait, prepare) {
  if (busy) return;
  if (!element("session").checkValidity()) {
    setStatus("error", "A session id has up to 128 characters: letters, digits, and . _ : -");
    return;
  }
  setBusy(true);
  setStatus("busy", wait);
  try {
    const attach = await prepare();
    turnList.clear();
    element("log").replaceChildren();
    element("hint").hidden = false;
    const token = element("token").value.trim();
    const id = element("session").value.trim() || (token ? "" : randomId());
    setStatus("busy", "Connecting to the gateway.");
    session = new Session(id, token);
    timeline.restart(session.conversation.turns);
    session.source = attach(session);
  } catch (error) {
    setStatus("error", error instanceof SourceError ? error.message : `The audio did not start: ${error.message}`);
    setBusy(false);
  }
}

/** `crypto.randomUUID` exists on https and localhost only. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `console-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function startMicrophone() {
  start("Waiting for the microphone: allow it in the browser.", async () => {
    const source = await openMicrophone(
      (chunk) => session?.live && session.takeChunk(chunk),
      () => session?.live && session.end(),
    );
    return () => source;
  });
}

/** @param {File | undefined} file */
function startFile(file) {
  if (!file) return;
  start(`Reading ${file.name}.`, async () => {
    const chunks = await readFile(file);
    const speed = Number(element("speed").value);
    return (owner) => playChunks(chunks, speed, (chunk) => owner.takeChunk(chunk), () => owner.end());
  });
}

/** @param {import("./control.js").DevState | null} state */
function showDev(state) {
  element("break").hidden = state === null;
  providerAway = state?.provider.state === "away";
  session?.showStatus();
  if (!state) return;
  const items = state.workers.map((worker) => {
    const owns = session !== null && worker.sessions.includes(session.id);
    if (owns) session.worker = worker.id;
    const item = document.createElement("li");
    item.dataset.state = worker.state;
    item.textContent = `${worker.id}: ${worker.state}${owns ? ", has this session" : ""}`;
    return item;
  });
  element("workers").replaceChildren(...items);
  element("provider").textContent =
    `Provider (${state.engine === "speech" ? "local speech recognition" : "scripted words"}): ${state.provider.state}`;
}

const DID = {
  kill: (worker) => `${worker} killed`,
  cut: (worker) => (worker ? `socket of ${worker} cut` : "socket cut"),
  outage: () => "provider away for 5 s",
};

const control = new Control({
  state: showDev,
  did: (did, worker) => note("kill", DID[did](worker), did),
  failed: (message) => note("error", message),
});

function takeTokenOfAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  element("token").value = token;
  history.replaceState(null, "", location.pathname + location.search);
}

for (const key of KEYS) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = key;
  button.disabled = true;
  button.addEventListener("click", () => session?.press(key));
  element("keypad").append(button);
}
element("microphone").addEventListener("click", startMicrophone);
element("file").addEventListener("change", ({ target }) => {
  startFile(target.files[0]);
  target.value = "";
});
element("end-turn").addEventListener("click", () => session?.endTurn());
element("end-session").addEventListener("click", () => session?.end());
for (const action of BREAKS) {
  element(action).addEventListener("click", () => session && control.do(action, session.id));
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  startFile(event.dataTransfer?.files[0]);
});
document.addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (element("end-turn").disabled || target.closest("input, select")) return;
  if (KEYS.includes(event.key)) session?.press(event.key);
  if (event.key === "Enter" && !target.closest("button, summary")) session?.endTurn();
});

takeTokenOfAddress();
element("microphone-note").textContent = microphoneMissing();
element("microphone-note").hidden = !microphoneMissing();
setBusy(false);
