/** The list of turns: text that grows word by word, the state of each turn, and its latency. */

/** @param {number | null} ms @returns {string} */
export function seconds(ms) {
  return ms === null ? "-" : `${(ms / 1000).toFixed(1)} s`;
}

export class TurnList {
  #list;
  #template;
  #announcer;
  /** @type {Map<import("./turns.js").Turn, HTMLElement>} */
  #items = new Map();

  /**
   * @param {HTMLElement} list
   * @param {HTMLTemplateElement} template
   * @param {HTMLElement} announcer live region: it gets the text of each turn once, at its end
   */
  constructor(list, template, announcer) {
    this.#list = list;
    this.#template = template;
    this.#announcer = announcer;
  }

  clear() {
    this.#items.clear();
    this.#list.replaceChildren();
    this.#announcer.textContent = "";
  }

  /** @param {import("./turns.js").Turn} turn new or changed */
  show(turn) {
    const item = this.#items.get(turn) ?? this.#add(turn);
    const announced = item.dataset.state === "done";
    item.dataset.state = turn.state;
    part(item, "state").textContent = turn.state;
    part(item, "reason").textContent = turn.reason && `reason: ${turn.reason}`;
    part(item, "latency").textContent = latency(turn);
    growText(part(item, "text"), turn.text);
    if (turn.state === "done" && !announced) {
      this.#announcer.textContent = `Turn ${turn.number}: ${turn.text.trim() || "no words"}`;
    }
  }

  /** @param {import("./turns.js").Turn} turn */
  #add(turn) {
    const copy = /** @type {DocumentFragment} */ (this.#template.content.cloneNode(true));
    const item = /** @type {HTMLElement} */ (copy.firstElementChild);
    part(item, "number").textContent = `turn ${turn.number}`;
    part(item, "start").textContent =
      `turn.start, ${seconds(turn.startedAt - turn.onsetAt)} after the first sound: an agent stops speaking here`;
    this.#list.prepend(copy);
    this.#items.set(turn, item);
    return item;
  }
}

/** @param {HTMLElement} item @param {string} name @returns {HTMLElement} */
function part(item, name) {
  return item.querySelector(`.${name}`);
}

/** @param {import("./turns.js").Turn} turn */
function latency(turn) {
  const parts = [`socket ${turn.connections.join(", then ")}`];
  if (turn.firstWordMs !== null) parts.push(`first word after ${seconds(turn.firstWordMs)}`);
  if (turn.resumes) parts.push(`resumed ${turn.resumes}x`);
  if (turn.endMs !== null) parts.push(`turn.end ${seconds(turn.endMs)} after the last sound`);
  return parts.join(" · ");
}

/**
 * Append what is new in an element of its own, so that it can fade in.
 *
 * @param {HTMLElement} element @param {string} text
 */
function growText(element, text) {
  const shown = element.textContent;
  if (text === shown) return;
  const added = document.createElement("span");
  added.className = "added";
  if (text.startsWith(shown)) {
    added.textContent = text.slice(shown.length);
    element.append(added);
  } else {
    added.textContent = text;
    element.replaceChildren(added);
  }
}
