// Tests of the sockets and of the file player, with a socket and a clock of the test.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { Call } from "./call.js";
import { Control } from "./control.js";
import { playChunks } from "./sources.js";

class FakeSocket {
  static OPEN = 1;
  static all = [];
  static get last() {
    return FakeSocket.all.at(-1);
  }
  readyState = FakeSocket.OPEN;
  sent = [];
  constructor(url) {
    this.url = new URL(url);
    FakeSocket.all.push(this);
  }
  send(message) {
    this.sent.push(message);
  }
  receive(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }
  close(code, reason = "") {
    return this.onclose({ code, reason });
  }
}

let now = 0;
globalThis.WebSocket = FakeSocket;
globalThis.location = { href: "https://gateway.test/" };
mock.method(performance, "now", () => now);
mock.timers.enable({ apis: ["setTimeout"] });

function pass(ms) {
  now += ms;
  mock.timers.tick(ms);
}

let said;
let answer;
globalThis.fetch = () => answer();

beforeEach(() => {
  FakeSocket.all.length = 0;
  said = [];
});

const OPENED = { type: "ingest.opened", sessions: ["s1"] };

function call(session = "s1", token = "") {
  return new Call(session, token, {
    opened: (sessions) => said.push(["opened", ...sessions]),
    event: ({ seq }) => said.push(["event", seq]),
    reconnecting: () => said.push(["reconnecting"]),
    closed: ({ failed, text }) => said.push(["closed", failed, text]),
  });
}

test("audio and texts wait for the gateway and keep their order", () => {
  const started = call();
  assert.equal(FakeSocket.last.url.protocol, "wss:");
  const query = Object.fromEntries(FakeSocket.last.url.searchParams);
  assert.deepEqual(query, { encoding: "pcm_s16le", sample_rate: "16000", events: "1", session: "s1" });
  const audio = new ArrayBuffer(2);
  started.sendAudio(audio);
  started.sendText({ mark: { dtmf: "5" } });
  assert.deepEqual(FakeSocket.last.sent, []);
  FakeSocket.last.receive(OPENED);
  started.sendText({ turn_end: true });
  assert.deepEqual(FakeSocket.last.sent, [audio, '{"mark":{"dtmf":"5"}}', '{"turn_end":true}']);
});

test("a session that has ended is no failure, and nothing follows its end", async () => {
  const started = call();
  FakeSocket.last.receive(OPENED);
  FakeSocket.last.receive({ type: "session.started", seq: 1 });
  started.end();
  started.end();
  started.sendAudio(new ArrayBuffer(2));
  await FakeSocket.last.close(1000);
  assert.deepEqual(FakeSocket.last.sent, ['{"end":true}']);
  assert.deepEqual(said, [["opened", "s1"], ["event", 1], ["closed", false, "The session has ended."]]);
});

test("a lost call returns with its session, and nothing that waited is lost", async () => {
  const started = call("", "secret");
  assert.equal(FakeSocket.last.url.searchParams.get("session"), null);
  FakeSocket.last.receive(OPENED);
  await FakeSocket.last.close(1006);
  started.sendText({ mark: { dtmf: "1" } });
  started.end();
  pass(500);
  await FakeSocket.last.close(1006); // still away
  pass(500);
  assert.equal(FakeSocket.all.length, 3);
  assert.equal(FakeSocket.last.url.searchParams.get("session"), "s1");
  assert.equal(FakeSocket.last.url.searchParams.get("token"), "secret");
  FakeSocket.last.receive(OPENED);
  assert.deepEqual(FakeSocket.last.sent, ['{"mark":{"dtmf":"1"}}', '{"end":true}']);
  assert.deepEqual(said, [["opened", "s1"], ["reconnecting"], ["opened", "s1"]]);
});

for (const [code, cause] of [[1006, "did not answer"], [1001, "shut down"]]) {
  test(`the call gives up after the grace, close code ${code}`, async () => {
    call();
    FakeSocket.last.receive(OPENED);
    for (let tries = 0; tries < 20 && said.at(-1)[0] !== "closed"; tries++) {
      await FakeSocket.last.close(code);
      pass(500);
    }
    const [what, failed, text] = said.at(-1);
    assert.deepEqual([what, failed], ["closed", true]);
    assert.match(text, new RegExp(cause));
    assert.ok(FakeSocket.all.length <= 10);
  });
}

test("a refused message ends the call with the gateway's reason", async () => {
  call();
  FakeSocket.last.receive(OPENED);
  await FakeSocket.last.close(1008, "mark: not an object");
  assert.deepEqual(said.at(-1), ["closed", true, "The gateway refused the call: mark: not an object."]);
});

test("a loss behind the end is not retried", async () => {
  call().end();
  FakeSocket.last.receive(OPENED);
  await FakeSocket.last.close(1006);
  pass(1000);
  assert.equal(FakeSocket.all.length, 1);
  assert.equal(said.at(-1)[1], true);
});

const refusals = [
  ["the gateway's own line", async () => ({ status: 401, text: async () => "token: expired\n" }), /\(401\): token: expired$/],
  ["the line about a wrong query", async () => ({ status: 400, text: async () => "session: too long" }), /\(400\): session/],
  ["advice if only the upgrade is missing", async () => ({ status: 426, text: async () => "a WebSocket is needed" }), /Is the gateway running\?/],
  ["advice without an answer", () => Promise.reject(new TypeError("failed to fetch")), /Is the gateway running\?/],
];

for (const [name, reply, expected] of refusals) {
  test(`a refused call shows ${name}`, async () => {
    answer = reply;
    call();
    await FakeSocket.last.close(1006);
    assert.equal(FakeSocket.all.length, 1);
    assert.match(said.at(-1)[2], expected);
  });
}

function control() {
  return new Control({
    state: (state) => said.push(state && state.provider.state),
    did: (did, worker) => said.push([did, worker]),
    failed: (message) => said.push(message),
  });
}

test("a control channel that is absent is not tried again", () => {
  control();
  FakeSocket.last.close(1006);
  pass(5000);
  assert.equal(FakeSocket.all.length, 1);
  assert.deepEqual(said, [null]);
});

test("the control channel sends breaks, shows replies, and returns", () => {
  const channel = control();
  assert.equal(FakeSocket.last.url.pathname, "/control");
  FakeSocket.last.onopen();
  FakeSocket.last.receive({ workers: [], provider: { state: "up" }, engine: "script" });
  channel.do("kill", "s1");
  assert.deepEqual(FakeSocket.last.sent, ['{"do":"kill","session":"s1"}']);
  FakeSocket.last.receive({ did: "kill", worker: "worker-1" });
  FakeSocket.last.receive({ did: "outage" });
  FakeSocket.last.receive({ error: "no worker has session s1" });
  FakeSocket.last.close(1006);
  pass(1000);
  assert.equal(FakeSocket.all.length, 2);
  assert.deepEqual(said, ["up", ["kill", "worker-1"], ["outage", ""], "no worker has session s1", null]);
});

/** Play a file; return what was taken, and a function that runs the timer at a time. */
function played(chunks, speed) {
  const taken = [];
  const timer = {};
  mock.method(globalThis, "setInterval", (run) => Object.assign(timer, { run }));
  mock.method(globalThis, "clearInterval", (cleared) => delete cleared.run);
  const source = playChunks(chunks, speed, (chunk) => taken.push(chunk), () => taken.push("finished"));
  const began = now;
  const runAt = (ms) => {
    now = began + ms;
    timer.run?.();
  };
  return { source, taken, runAt };
}

test("a file is sent in real time, and a slow timer sends what is due", () => {
  const { taken, runAt } = played([1, 2, 3, 4, 5], 1);
  runAt(100);
  assert.deepEqual(taken, [1]);
  runAt(400); // the timer of a hidden tab
  assert.deepEqual(taken, [1, 2, 3, 4]);
  runAt(500);
  runAt(600);
  assert.deepEqual(taken, [1, 2, 3, 4, 5, "finished"]);
});

test("a file that is stopped sends nothing more and does not finish", async () => {
  const { source, taken, runAt } = played([1, 2, 3], 2);
  runAt(50);
  await source.stop();
  runAt(1000);
  assert.deepEqual(taken, [1]);
});
