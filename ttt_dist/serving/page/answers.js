// The card of one answer: what was asked, the text as it is written, speech as it is spoken, and the figures of it.

import { Attention } from "./attention.js";
import { get, getJson, sentence } from "./asking.js";
import { bars } from "./playing.js";
import { Sound, pauseSound, samplesOf, toWav } from "./sound.js";

const FINISH = {
  end_of_turn: "", last_span: "", max_text: "The answer was cut at the most text that is allowed.",
  span_limit: "A stretch of speech was cut at its limit.",
  max_codes: "The answer was cut at the most speech that is allowed.", max_length: "The answer was cut at the model's limit.",
};
const seconds = (value) => `${value.toFixed(2)}\u00a0s`;
const plural = (count, noun) => `${count}\u00a0${noun}${count === 1 ? "" : "s"}`;
const sum = (whole, parts) => `${whole}: ${parts.filter(([count]) => count).map(([, text]) => text).join(", ")}`;

export class Answer {
  // `asked`: task, title, text, and of a recording its name and, where the browser reads it, its samples. `mayPlay`: whether sound may begin.
  constructor(asked, model, player, mayPlay) {
    Object.assign(this, { asked, model, player, mayPlay, samples: [], firstText: null, firstSound: null, gone: new AbortController() });
    this.card = document.getElementById("answer-form").content.firstElementChild.cloneNode(true);
    this.part = (selector) => this.card.querySelector(selector);
    this.part(".asked b").textContent = asked.title;
    this.part(".asked span").textContent = [asked.text, asked.name].filter(Boolean).join(" · ");
    this.card.setAttribute("aria-label", `${asked.title}: ${this.part(".asked span").textContent}`);
    if (asked.samples) this.part(".asked").append(this.chip(asked.samples, "what was said", asked.samples.length / model.sample_rate));
    this.mark("decoding");
  }

  mark(state) {
    this.card.dataset.state = state;
    this.part(".reply").setAttribute("aria-busy", state === "decoding");
  }

  take(event) {
    if (event.prompt_tokens !== undefined) this.begin(event);
    else if (event.text !== undefined) this.text(event);
    else if (event.length !== undefined) this.speech(event);
    else if (event.answer !== undefined) this.end(event);
  }

  begin({ speaker, left_out }) {
    if (speaker) this.part(".asked b").textContent += ` as ${speaker}`;
    else if (this.asked.task === "speak" && this.model.names_speakers) this.remark("The model was trained with the names of speakers, and hardly speaks without one: give one.");
    if (left_out) this.remark(`The first ${plural(left_out, "turn")} of this chat no longer fit, and were left out.`);
  }

  text(event) {
    this.firstText ??= event.seconds;
    this.part(".reply").append(event.text);
  }

  speech(event) {
    if (event.speech === null) {
      this.part(".reply").append(this.chip(null, this.model.no_speech, event.length));
      return;
    }
    this.firstSound ??= event.seconds;
    const samples = this.player.samples(event.speech);
    this.samples.push(samples);
    const chip = this.chip(samples, `stretch ${this.samples.length} of the answer`, event.length);
    this.part(".reply").append(chip);
    if (!this.card.closest("[hidden]") && this.mayPlay()) this.player.next(samples, chip);
    this.sound ??= new Sound(this.part(".sound-place"), this.model.sample_rate, () => this.player.stop());
    this.sound.setSamples(joined(this.samples));
  }

  // A stretch of speech between the words, to be heard again; without samples it is only told.
  chip(samples, name, length) {
    const chip = document.createElement("button");
    Object.assign(chip, { type: "button", className: "span", title: samples ? `Play ${name}` : name, disabled: !samples });
    chip.setAttribute("aria-label", `${chip.title}, ${seconds(length)}`);
    if (samples) {
      chip.append(bars(samples));
      chip.addEventListener("click", () => {
        pauseSound();
        this.player.now(samples, chip);
      });
    }
    chip.append(seconds(length));
    return chip;
  }

  end(event) {
    const isSilent = !event.whole_text.trim() && !event.codes;
    if (isSilent) this.remark("The model answered with nothing: try another seed, or train it longer.");
    else if (this.asked.task === "speak" && !event.codes) this.remark("The model answered without speech: try another seed, or train it longer.");
    else if (FINISH[event.finish] !== "") this.remark(FINISH[event.finish] ?? event.finish);
    this.figures(event);
    this.mark("done");
    this.card.dataset.answer = event.answer;
    this.part(".attention").hidden = false;
    this.part(".attention").addEventListener("toggle", () => this.attention(event.answer));
    if (this.sound) this.keep(event.answer);
  }

  // All by the server's clock, and each with what it comes from, so that they add up.
  figures({ seconds: total, tokens, text_tokens, codes, forwards, audio_forwards }) {
    const transcribes = this.asked.task === "transcribe";
    const spoken = transcribes ? 0 : codes / this.model.code_rate;
    const length = transcribes ? (this.asked.samples?.length ?? 0) / this.model.sample_rate : spoken;
    const marks = tokens - text_tokens - codes, forTexts = forwards - audio_forwards;
    const firsts = [[this.firstText, "first text"], [this.firstSound, "first sound"]].filter(([at]) => at !== null);
    const shown = [
      spoken && [seconds(spoken), `of speech: ${plural(codes, "code")} at ${this.model.code_rate}/s`],
      [seconds(total), ["in all", ...firsts.map(([at, what]) => `${what} ${seconds(at)}`)].join(", ")],
      length && [(total / length).toFixed(2), `real-time factor: ${seconds(total)} / ${seconds(length)}`],
      [tokens, sum("tokens", [[text_tokens, `${text_tokens}\u00a0text`], [codes, plural(codes, "code")], [marks, plural(marks, "mark")]])],
      [forwards, sum("forward passes", [[forTexts, `${forTexts}\u00a0text`], [audio_forwards, `${audio_forwards}\u00a0speech`]])],
    ];
    this.part(".figures").replaceChildren(...shown.filter(Boolean).map(([value, name]) => {
      const pair = document.createElement("div");
      pair.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
      return pair;
    }));
    this.part(".figures-box").hidden = false;
    this.part(".figures-box").open = this.asked.task !== "chat";
    if (this.asked.task === "chat") this.part(".figures-box summary").textContent = `${seconds(total)}, ${plural(tokens, "token")}`;
  }

  // For those who hear the page: the answer as one sentence.
  inWords() {
    const text = [...this.part(".reply").childNodes].map((node) => node.data ?? "").join("").trim();
    const length = this.samples.reduce((sum, piece) => sum + piece.length, 0) / this.model.sample_rate;
    return [`Answer: ${text || "no text"}.`, length ? `${seconds(length)} of speech.` : "", this.part(".remark").textContent].join(" ").trim();
  }

  attention(key) {
    this.picture ??= getJson(`answers/${key}/attention`).then(
      (told) => new Attention(this.part(".attention"), told, this.gone.signal),
      (error) => {
        this.picture = null; // to be asked for again
        this.part(".row-told").value = sentence(error.message);
      },
    );
  }

  // The whole speech, decoded in one piece, to be played again and stored.
  async keep(key) {
    try {
      const blob = await (await get(`answers/${key}/speech.wav`)).blob();
      this.sound.setSamples(await samplesOf(blob, this.model.sample_rate));
      this.sound.setFile(blob, `${this.asked.task}-${key}.wav`);
    } catch (error) {
      this.remark(error.message, true);
      this.keepPieces();
    }
  }

  // What was spoken before the answer was broken off.
  keepPieces() {
    this.sound?.setFile(toWav(joined(this.samples), this.model.sample_rate), `${this.asked.task}.wav`);
  }

  close() {
    this.gone.abort();
    this.sound?.close();
    this.card.remove();
  }

  fail(message, isBad) {
    this.mark("stopped");
    this.remark(message, isBad);
    this.keepPieces();
  }

  remark(message, isBad = false) {
    const remark = this.part(".remark");
    remark.textContent = [remark.textContent, sentence(message)].filter(Boolean).join(" ");
    remark.hidden = false;
    remark.classList.toggle("bad", isBad);
  }
}

function joined(pieces) {
  const whole = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (whole.set(piece, at), at + piece.length), 0);
  return whole;
}
