/** The strip: the last 30 s of sound, turns, the agent, and what happened in between. */

const WINDOW_MS = 30000;
const ROWS = { sound: 34, turns: 78, agent: 100, height: 116 };
const LABEL_LINES = 3;
const LABEL_HEIGHT = 11;
const LABEL_GAP = 6;

/**
 * @typedef {{at: number, rms: number, sound: boolean}} Level
 * @typedef {{at: number, kind: string, label: string}} Marker
 */

export class Timeline {
  /** @type {Level[]} */
  #levels = [];
  /** @type {Marker[]} */
  #markers = [];
  /** @type {import("./turns.js").Turn[]} */
  #turns = [];
  #canvas;
  #scheduled = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#schedule());
    new ResizeObserver(() => this.#schedule()).observe(canvas);
  }

  /** @param {import("./turns.js").Turn[]} turns shown from now on; the list may grow */
  restart(turns) {
    this.#levels = [];
    this.#markers = [];
    this.#turns = turns;
    this.#schedule();
  }

  /** @param {Level} level */
  addLevel(level) {
    this.#levels = recent(this.#levels, level);
    this.#schedule();
  }

  /** @param {Marker} marker */
  addMarker(marker) {
    this.#markers = recent(this.#markers, marker);
    this.#schedule();
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const width = this.#canvas.clientWidth;
    const ratio = devicePixelRatio;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(ROWS.height * ratio);
    const context = this.#canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "top";
    const style = getComputedStyle(this.#canvas);
    const now = Math.max(this.#levels.at(-1)?.at ?? 0, this.#markers.at(-1)?.at ?? 0);
    /** @param {number} at @returns {number} */
    const x = (at) => width - ((now - at) / WINDOW_MS) * width;
    /** @param {string} name @param {number} from @param {number} to @param {number} y @param {number} height */
    const bar = (name, from, to, y, height) => {
      context.fillStyle = style.getPropertyValue(`--${name}`);
      context.fillRect(x(from), y, Math.max(1, x(to) - x(from)), height);
    };
    bar("line", now - WINDOW_MS, now, ROWS.turns - 6, 1);
    for (const { at, rms, sound } of this.#levels) {
      const height = Math.max(1, Math.min(1, rms * 5) * 36);
      bar(sound ? "sound" : "quiet", at - 100, at - 20, ROWS.turns - 8 - height, height);
    }
    this.#turns.forEach((turn, index) => {
      bar("speaking", turn.startedAt, turn.endedAt ?? now, ROWS.turns, 14);
      for (const pause of turn.pauses) {
        bar("eager", pause.from, pause.to ?? now, ROWS.turns, 14);
        bar("eager", pause.from, pause.to ?? now, ROWS.agent, 6);
      }
      if (turn.endedAt) bar("agent", turn.endedAt, this.#turns[index + 1]?.startedAt ?? now, ROWS.agent, 6);
    });
    // Where the labels of each line end: a label takes the first line that is free.
    const ends = new Array(LABEL_LINES).fill(-Infinity);
    for (const { at, kind, label } of this.#markers) {
      const size = context.measureText(label).width;
      const left = Math.min(x(at) + 3, width - size);
      const line = Math.max(0, ends.findIndex((end) => end < left));
      bar(kind, at, at, label ? line * LABEL_HEIGHT : ROWS.sound, ROWS.height);
      context.fillText(label, left, line * LABEL_HEIGHT);
      if (label) ends[line] = left + size + LABEL_GAP;
    }
  }
}

/**
 * @template {{at: number}} T
 * @param {T[]} items @param {T} added @returns {T[]} those in the window, and the added one
 */
function recent(items, added) {
  return [...items.filter((item) => added.at - item.at < WINDOW_MS), added];
}
