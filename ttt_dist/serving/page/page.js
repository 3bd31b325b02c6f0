// The page: asks a question, shows text and plays speech while the answer is made, span by span.

import { Clip } from "./recording.js";
import { Player, bars } from "./playing.js";

const find = (id) => document.getElementById(id);
const HINTS = {
  speak: "Type a text; the model speaks it.",
  transcribe: "Record or choose speech; the model writes it down.",
  chat: "Say or type something; the model answers. Every message is a chat of its own.",
};
const LABELS = { speak: "Speak", transcribe: "Transcribe", chat: "Send" };
const TEMPLATES = { audio_chat: "text and speech", text_chat: "text" };
const FINISH = {
  end_of_turn: "", last_span: "", max_text: "The answer was cut at the most text that is allowed.",
  span_limit: "A stretch of speech was cut at its limit.",
  max_codes: "The answer was cut at the most speech that is allowed.", max_length: "The answer was cut at the model's limit.",
};

let model = null;
let running = null; // AbortController of the question being answered
let player = null;
const clip = new Clip(find, tell);

function tell(message, state = "idle") {
  find("state").value = message.charAt(0).toUpperCase() + message.slice(1);
  document.body.dataset.state = state;
}

const task = () => document.querySelector("input[name=task]:checked").value;

function showTask() {
  const chosen = task();
  find("hint").textContent = HINTS[chosen];
  find("go").textContent = LABELS[chosen];
  find("text").hidden = chosen === "transcribe";
  find("text").placeholder = chosen === "chat" ? "Message" : "Text to speak";
  find("sound").hidden = chosen === "speak" || (chosen === "chat" && find("template").value === "text_chat");
  find("speaker-label").hidden = chosen !== "speak" || !model.names_speakers;
  find("template-label").hidden = chosen !== "chat";
  find("aloud-label").hidden = chosen === "transcribe" || Boolean(model.no_speech);
}

async function start() {
  const response = await fetch("model");
  if (!response.ok) throw new Error(await reason(response));
  model = await response.json();
  clip.configure(model);
  const size = Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(model.parameters);
  find("about").textContent = `${model.name} · ${size} parameters · ${model.codec}, ${model.code_rate} codes/s`;
  for (const [name, templates] of Object.entries(model.tasks)) {
    const option = document.querySelector(`input[value=${name}]`);
    option.parentElement.hidden = !templates.length || (name === "speak" && model.no_speech);
    if (option.parentElement.hidden) option.checked = false;
  }
  if (!document.querySelector("input[name=task]:checked")) document.querySelector("label:not([hidden]) > input[name=task]").checked = true;
  find("template").replaceChildren(...model.tasks.chat.map((name) => new Option(TEMPLATES[name], name)));
  find("lang").replaceChildren(...model.languages.map((name) => new Option(name)));
  find("lang-label").hidden = !model.languages.length;
  find("settings").replaceChildren(...Object.entries(model.settings).map(([name, value]) => setting(name, value, model.fields[name])));
  showTask();
  tell("Ready");
}

function setting(name, value, field) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { id: name, type: "number", min: field.min, step: field.step, value });
  label.title = field.title;
  label.append(`${field.label} `, input);
  return label;
}

async function reason(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server failed (${response.status}); its terminal says more`;
  }
}

function form() {
  const fields = new FormData();
  fields.set("task", task());
  for (const name of ["text", "speaker", "template", "lang", "seed", ...Object.keys(model.settings)]) {
    const label = find(name).closest("label");
    if (!find(name).hidden && !label?.hidden) fields.set(name, find(name).value);
  }
  if (!find("sound").hidden && clip.blob) fields.set("recording", clip.blob, clip.name);
  return fields;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

// One answer: its card, and what has come of it so far.
class Answer {
  constructor(asked) {
    this.card = find("answer-form").content.firstElementChild.cloneNode(true);
    this.part = (selector) => this.card.querySelector(selector);
    this.part(".asked b").textContent = asked.get("task");
    this.part(".asked span").textContent = [asked.get("text"), asked.get("recording")?.name].filter(Boolean).join(" · ");
    this.card.dataset.state = "decoding";
    this.start = performance.now();
    this.length = 0;
    this.figures = {};
    find("answers").prepend(this.card);
  }

  since = () => (performance.now() - this.start) / 1000;

  take(event) {
    if (event.text !== undefined) {
      this.figures["to first text"] ??= seconds(this.since());
      this.part(".reply").append(event.text);
    } else if (event.length !== undefined) {
      this.speech(event);
    } else if (event.answer !== undefined) {
      this.end(event);
    }
    this.show();
  }

  speech(event) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "span";
    chip.title = event.speech === null ? model.no_speech : "Play this span";
    chip.disabled = event.speech === null;
    this.part(".reply").append(chip);
    this.length += event.length;
    if (event.speech !== null) {
      const samples = player.samples(event.speech);
      chip.append(bars(samples));
      chip.addEventListener("click", () => player.now(samples, chip));
      if (find("aloud").checked) player.next(samples, chip);
      this.figures["to first sound"] ??= seconds(this.since());
    }
    chip.append(seconds(event.length));
  }

  end(event) {
    if (this.length) {
      this.figures["of speech"] = seconds(this.length);
      this.figures["real time"] = `${(this.length / event.seconds).toPrecision(2)}×`;
    }
    Object.assign(this.figures, { "in all": seconds(event.seconds), tokens: event.tokens, "forward passes": event.forwards });
    if (!event.whole_text && !this.length) this.remark("The model answered with nothing: try another seed, or train it longer.");
    else if (task() === "speak" && !this.length) this.remark("The model answered without speech: try another seed, or train it longer.");
    else if (FINISH[event.finish] !== "") this.remark(FINISH[event.finish] ?? event.finish);
    this.card.dataset.state = "done";
    this.card.dataset.answer = event.answer;
    this.part(".picture").hidden = false;
    this.part(".picture").addEventListener("toggle", () => (this.part("img").src ||= `answers/${event.answer}/attention.png`));
    if (this.length && !model.no_speech) this.keep(event.answer);
  }

  // The whole speech as a file, to be played again and stored.
  async keep(key) {
    const response = await fetch(`answers/${key}/speech.wav`);
    if (!response.ok) return this.remark(await reason(response), true);
    this.part("audio").src = this.part("a").href = URL.createObjectURL(await response.blob());
    this.part("a").download = `${key}.wav`;
    this.part(".tools").hidden = false;
  }

  remark(message, isBad = false) {
    this.part(".remark").textContent = message;
    this.part(".remark").hidden = false;
    this.part(".remark").classList.toggle("bad", isBad);
  }

  show() {
    this.part(".figures").replaceChildren(...Object.entries(this.figures).map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
      return pair;
    }));
  }
}

const seconds = (value) => `${value.toFixed(2)} s`;

async function ask() {
  const asked = form();
  running = new AbortController();
  player ??= new Player(model.sample_rate);
  player.stop();
  find("go").disabled = true;
  find("stop").hidden = false;
  const start = performance.now();
  const clock = setInterval(() => tell(`Decoding, ${((performance.now() - start) / 1000).toFixed(1)} s`, "decoding"), 100);
  tell("Decoding", "decoding");
  let answer = null;
  try {
    const response = await fetch("answers", { method: "POST", body: asked, signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    answer = new Answer(asked);
    for await (const event of lines(response)) {
      if (event.error) throw new Error(event.error);
      answer.take(event);
    }
    if (answer.card.dataset.state !== "done") throw new Error("the connection ended before the answer did; ask again");
    clearInterval(clock);
    tell("Ready");
  } catch (error) {
    clearInterval(clock);
    const isStopped = error.name === "AbortError";
    if (answer) {
      answer.card.dataset.state = "stopped";
      answer.remark(isStopped ? "Stopped." : error.message, !isStopped);
    }
    const broken = answer ? "the connection to the server broke; ask again" : "the server cannot be reached; is it still running?";
    const message = error instanceof TypeError ? broken : error.message;
    isStopped ? tell("Stopped") : tell(message, "error");
  }
  find("go").disabled = false;
  find("stop").hidden = true;
  running = null;
}

function stop() {
  running?.abort();
  player?.stop();
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) ask();
});
find("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
document.querySelector(".tasks").addEventListener("change", showTask);
find("template").addEventListener("change", showTask);
find("stop").addEventListener("click", stop);
start().catch((error) => tell(error.message, "error"));
