// The page: which task is chosen, the form of a question, and where its answer goes.

import { Answer } from "./answers.js";
import { ask, getJson, sentence } from "./asking.js";
import { Clip } from "./recording.js";
import { Player } from "./playing.js";
import { isSounding, pauseSound } from "./sound.js";

const find = (id) => document.getElementById(id);
const HINTS = {
  speak: "Type a text; the model speaks it. Ctrl+Enter sends, Escape stops.",
  transcribe: "Record or choose speech; the model writes it down.",
  chat: "Say or type something; the model answers, and remembers. Enter sends, Shift+Enter begins a new line.",
};
const LABELS = { speak: "Speak", transcribe: "Transcribe", chat: "Send" };
const TITLES = { ...LABELS, chat: "You" };
const STOPPED = { chat: "Stopped; the chat goes on from before this question." };
const TEMPLATES = { audio_chat: "text and speech", text_chat: "text" };

let model = null;
let running = null; // AbortController of the question being answered
let player = null;
let lastOfChat = null; // key of the answer that the chat goes on from
let chat = []; // its answers
const clip = new Clip(find, quiet);

// What assistive technology is told, so only what changes seldom.
function tell(message, state = "idle") {
  if (find("state").value !== sentence(message)) find("state").value = sentence(message); // else it is read out again
  document.body.dataset.state = state;
}

const task = () => document.querySelector("input[name=task]:checked").value;

function show(id, isShown) {
  find(id).hidden = !isShown;
}

function showTask() {
  const chosen = task();
  const isChat = chosen === "chat";
  document.body.dataset.task = chosen;
  find("hint").textContent = HINTS[chosen];
  find("go").textContent = LABELS[chosen];
  find("text").placeholder = isChat ? "Message" : "Text to speak";
  find("text").rows = isChat ? 2 : 3;
  show("text", chosen !== "transcribe");
  show("sound", chosen === "transcribe" || (isChat && find("template").value !== "text_chat"));
  if (find("sound").hidden) clip.stop(); // nothing is recorded unseen
  show("speaker-label", chosen === "speak" && model.speakers.length > 0);
  show("speaker-name-label", chosen === "speak" && model.names_speakers && !model.speakers.length);
  show("template-label", isChat);
  show("lang-label", model.languages.length > 0);
  show("aloud-label", chosen !== "transcribe" && !model.no_speech);
  show("thread", isChat && find("thread").childElementCount > 0);
  show("answers", !isChat);
  show("new-chat", isChat && chat.length > 0);
}

async function start() {
  model = await getJson("model");
  clip.configure(model);
  const size = Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(model.parameters);
  find("about").textContent = `${model.name} · ${size} parameters · ${model.codec}, ${model.code_rate} codes/s`;
  for (const [name, templates] of Object.entries(model.tasks)) {
    const option = document.querySelector(`input[value=${name}]`);
    option.parentElement.hidden = !templates.length || (name === "speak" && Boolean(model.no_speech));
    if (option.parentElement.hidden) option.checked = false;
  }
  if (!document.querySelector("input[name=task]:checked")) document.querySelector("label:not([hidden]) > input[name=task]").checked = true;
  options("speaker", model.speakers);
  options("template", model.tasks.chat, TEMPLATES);
  options("lang", model.languages);
  find("settings").append(...Object.entries(model.settings).map(([name, value]) => setting(name, value, model.fields[name])));
  showTask();
  tell("Ready");
  find("loading").hidden = true;
  document.querySelector("main").hidden = false;
}

function options(id, names, labels = {}) {
  find(id).replaceChildren(...names.map((name) => new Option(labels[name] ?? name, name)));
}

function setting(name, value, field) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { id: name, type: "number", min: field.min, step: field.step, value });
  label.title = field.title;
  label.append(`${field.label} `, input);
  return label;
}

// Whether all settings are numbers in their range; the first that is not is shown.
function areNumbers() {
  const isBad = ({ step, validity: its }) => its.badInput || its.rangeUnderflow || its.rangeOverflow || (step === "1" && its.stepMismatch);
  const bad = [...find("settings").querySelectorAll("input")].find(isBad); // of others `step` is only how far an arrow goes
  if (!bad) return true;
  find("decoding").open = true;
  bad.focus();
  tell(`${bad.labels[0].textContent.trim()}: ${bad.validationMessage}`, "error");
  return false;
}

// The question, without its recording.
function form() {
  const fields = new FormData();
  fields.set("task", task());
  const isShown = (id) => !find(id).closest("[hidden]");
  for (const name of ["text", "speaker", "template", "lang", "seed", ...Object.keys(model.settings)]) {
    if (isShown(name)) fields.set(name, find(name).value);
  }
  if (isShown("speaker-name")) fields.set("speaker", find("speaker-name").value);
  if (task() === "chat" && lastOfChat) fields.set("after", lastOfChat);
  return fields;
}

// The card of an answer, at its place: a chat grows downwards, other answers stand newest first.
function card(fields, recording) {
  const asked = { task: fields.get("task"), title: TITLES[fields.get("task")], text: fields.get("text"), ...recording };
  const answer = new Answer(asked, model, player, () => find("aloud").checked && !isSounding() && !clip.take);
  if (asked.task === "chat") {
    chat.push(answer);
    find("thread").append(answer.card);
    if (task() === "chat" && find("text").value === asked.text) find("text").value = ""; // else it is the next question
    if (recording && clip.recording === recording) clip.set(null);
    showTask();
    find("ask").scrollIntoView({ block: "nearest" });
  } else {
    find("answers").prepend(answer.card);
  }
  return answer;
}

async function send() {
  running = new AbortController();
  quiet();
  busy(true);
  tell("Decoding", "decoding");
  find("announcer").textContent = "";
  const fields = form();
  let recording = null, answer = null;
  try {
    player ??= new Player(model.sample_rate);
    if (!find("sound").hidden) recording = await unlessAborted(recorded(), running.signal);
    if (recording) fields.set("recording", recording.blob, recording.name);
    for await (const event of ask(fields, running.signal)) {
      tell(event ? "Decoding" : "Waiting for its turn", "decoding");
      if (!event) continue;
      answer ??= card(fields, recording);
      if (event.error) throw new Error(event.error);
      answer.take(event);
      progress(event);
      if (event.answer !== undefined) break;
    }
    if (answer?.card.dataset.state !== "done") throw new Error("the connection ended before the answer did; ask again");
    if (fields.get("task") === "chat") {
      lastOfChat = answer.card.dataset.answer;
      find("ask").scrollIntoView({ block: "nearest" });
    }
    tell("Ready");
    find("announcer").textContent = answer.inWords();
  } catch (error) {
    const isStopped = error.name === "AbortError";
    answer?.fail(isStopped ? STOPPED[fields.get("task")] ?? "Stopped." : error.message, !isStopped);
    if (answer && fields.get("task") === "chat") again(fields.get("text"), recording);
    isStopped ? tell("Stopped") : tell(error.message, "error");
  }
  busy(false);
  showTask();
  running = null;
}

// What goes with a question: the recording in the box, or what is being recorded, once that has been read.
async function recorded() {
  if (!(await clip.stop())) throw new Error("the recording failed, so nothing was sent");
  return clip.recording;
}

function unlessAborted(promise, signal) {
  return Promise.race([promise, new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)))]);
}

// What a chat asked in vain stands in the form again, unless the next question does.
function again(text, recording) {
  if (find("text").value || clip.recording || clip.take) return;
  find("text").value = text;
  if (recording) clip.set(recording.blob, recording.name);
}

// The buttons while an answer is made; the focus stays among them.
function busy(isBusy) {
  const focused = document.activeElement;
  find("stop").hidden = !isBusy;
  if (isBusy && focused === find("go")) find("stop").focus();
  find("go").disabled = isBusy;
  if (!isBusy && focused === find("stop")) find("go").focus();
  find("new-chat").disabled = find("template").disabled = isBusy;
  if (!isBusy) find("clock").textContent = "";
}

function progress({ tokens_so_far, codes_so_far, forwards_so_far }) {
  if (tokens_so_far === undefined) return;
  const speech = codes_so_far ? `, ${(codes_so_far / model.code_rate).toFixed(1)} s of speech` : "";
  find("clock").textContent = `${tokens_so_far} tokens${speech}, ${forwards_so_far} forward passes`;
}

// Nothing sounds any more.
function quiet() {
  player?.stop();
  pauseSound();
}

function newChat() {
  quiet();
  for (const answer of chat) answer.close();
  [lastOfChat, chat] = [null, []];
  showTask();
  tell("New chat");
  find("text").focus();
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && areNumbers()) send();
});
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault()); // else the file takes the page's place
}
find("ask").addEventListener("input", () => {
  if (!running && document.body.dataset.state === "error") tell("Ready"); // what was wrong may not be so any more
});
find("aloud").addEventListener("change", () => find("aloud").checked || player?.stop());
find("text").addEventListener("keydown", (event) => {
  const sends = event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey || (task() === "chat" && !event.shiftKey));
  if (!sends) return;
  event.preventDefault();
  find("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  running?.abort();
  quiet();
});
document.querySelector(".tasks").addEventListener("change", () => {
  quiet(); // nothing sounds unseen
  showTask();
});
find("template").addEventListener("change", () => (chat.length ? newChat() : showTask()));
find("new-chat").addEventListener("click", newChat);
find("stop").addEventListener("click", () => {
  running?.abort();
  quiet();
});
start().catch((error) => {
  find("loading").textContent = `The model cannot be shown: ${error.message}`;
});
