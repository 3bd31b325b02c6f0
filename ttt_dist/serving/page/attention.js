// Who sees whom in a sequence, as a small picture: the server tells for each token the end of what it sees.

import { rgb } from "./spectrogram.js";

const PIXELS = 600;
const LEGEND = {
  "text-text": "text looks back at text",
  "text-audio": "text looks back at audio",
  "audio-earlier": "audio looks at all before its span",
  "audio-own": "audio looks at its whole span, both ways",
  unseen: "hidden",
};

export class Attention {
  // `root` is the <details>; `told` what the server says: length, prompt, ends, spans, tokens; `signal` aborts at its end.
  constructor(root, told, signal) {
    Object.assign(this, told, { row: null });
    this.count = this.ends.length;
    this.canvas = root.querySelector("canvas");
    this.output = root.querySelector("output");
    this.set({ "aria-label": "Who sees whom: row", "aria-valuemin": 1, "aria-valuemax": this.count, "aria-valuenow": 1, "aria-valuetext": this.summary() });
    root.querySelector(".legend").replaceChildren(...Object.entries(LEGEND).map(([name, text]) => {
      const item = document.createElement("li");
      item.append(Object.assign(document.createElement("i"), { className: name }), text);
      return item;
    }));
    this.output.value = this.summary();
    this.canvas.addEventListener("pointermove", (event) => this.choose(Math.floor((event.offsetY * this.count) / this.canvas.clientHeight)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint(), { signal });
    this.paint();
  }

  set(attributes) {
    for (const [name, value] of Object.entries(attributes)) this.canvas.setAttribute(name, value);
  }

  summary() {
    const spans = new Set(this.spans.filter(Boolean)).size;
    const cut = this.count < this.length ? `, of which the first ${this.count} are drawn` : "";
    const codes = this.spans.filter(Boolean).length;
    return `${this.length} tokens${cut}: ${this.prompt} of the prompt, ${this.length - this.prompt} of the answer; ` +
      `${codes} in ${spans} span${spans === 1 ? "" : "s"} that ${spans === 1 ? "is" : "are"} seen both ways.`;
  }

  key(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -this.count, End: this.count };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.choose((this.row ?? -1) + moves[event.key]);
  }

  choose(row) {
    this.row = Math.max(0, Math.min(this.count - 1, row));
    const place = this.row < this.prompt ? "prompt" : "answer";
    const kind = this.spans[this.row] ? `span ${this.spans[this.row]}` : "text";
    this.output.value = `Token ${this.row + 1}, “${this.tokens[this.row]}” (${place}, ${kind}), sees tokens 1 to ${this.ends[this.row]}.`;
    this.set({ "aria-valuenow": this.row + 1, "aria-valuetext": this.output.value });
    this.draw();
  }

  kind(query, key) {
    if (key >= this.ends[query]) return "unseen";
    if (!this.spans[query]) return this.spans[key] ? "text-audio" : "text-text";
    return this.spans[key] === this.spans[query] ? "audio-own" : "audio-earlier";
  }

  // All cells, in the present colours.
  paint() {
    const style = getComputedStyle(this.canvas);
    const colours = Object.fromEntries(Object.keys(LEGEND).map((name) => [name, [...rgb(style.getPropertyValue(`--${name}`)), 255]]));
    const size = this.count < PIXELS ? this.count * Math.ceil(PIXELS / this.count) : PIXELS;
    const token = (pixel) => Math.floor((pixel * this.count) / size);
    this.image = new ImageData(size, size);
    for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) this.image.data.set(colours[this.kind(token(y), token(x))], 4 * (y * size + x));
    this.canvas.width = this.canvas.height = size;
    this.draw();
  }

  // The cells, the border between prompt and answer, and the chosen row.
  draw() {
    const size = this.canvas.width, border = (this.prompt * size) / this.count, line = Math.ceil(size / 300);
    const context = this.canvas.getContext("2d");
    context.putImageData(this.image, 0, 0);
    context.fillStyle = context.strokeStyle = getComputedStyle(this.canvas).color;
    context.fillRect(border, 0, line, size);
    context.fillRect(0, border, size, line);
    context.lineWidth = line;
    if (this.row !== null) context.strokeRect(line / 2, (this.row * size) / this.count, size - line, size / this.count);
  }
}
