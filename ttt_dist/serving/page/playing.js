// Sound while it is made: pieces are played one after the other, without a gap where they come in time.

const LEAD_S = 0.03; // between the arrival of a piece and its start
const NUM_BARS = 22;

export class Player {
  constructor(sampleRate) {
    this.context = new AudioContext();
    this.sampleRate = sampleRate;
    this.end = 0; // when what is queued has been played
    this.nodes = new Set();
  }

  // Samples of 16 bits in base64 as numbers from -1 to 1.
  samples(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return Float32Array.from(new Int16Array(bytes.buffer), (value) => value / 32768);
  }

  // Play after all that is queued; `chip` shows when.
  next(samples, chip) {
    this.context.resume();
    const buffer = this.context.createBuffer(1, samples.length, this.sampleRate);
    buffer.copyToChannel(samples, 0);
    const node = new AudioBufferSourceNode(this.context, { buffer });
    node.connect(this.context.destination);
    const at = Math.max(this.context.currentTime + LEAD_S, this.end);
    this.end = at + buffer.duration;
    this.nodes.add(node);
    const light = setTimeout(() => chip.classList.add("sounding"), (at - this.context.currentTime) * 1000);
    node.onended = () => {
      clearTimeout(light);
      chip.classList.remove("sounding");
      chip.dataset.heard = "yes";
      this.nodes.delete(node);
    };
    node.start(at);
  }

  now(samples, chip) {
    this.stop();
    this.next(samples, chip);
  }

  stop() {
    for (const node of this.nodes) node.stop();
    this.end = 0;
  }
}

// Loudness over time as a small drawing.
export function bars(samples) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${NUM_BARS * 3} 18`);
  svg.setAttribute("aria-hidden", "true");
  const size = samples.length / NUM_BARS;
  const levels = Array.from({ length: NUM_BARS }, (_, bar) => {
    const piece = samples.subarray(bar * size, (bar + 1) * size);
    return Math.sqrt(piece.reduce((sum, value) => sum + value * value, 0) / Math.max(piece.length, 1));
  });
  const top = Math.max(...levels, 0.02);
  levels.forEach((level, bar) => {
    const height = 2 + (14 * level) / top;
    const values = { x: bar * 3, y: 9 - height / 2, width: 2, height, rx: 1 };
    const rect = document.createElementNS(svg.namespaceURI, "rect");
    for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value.toFixed(1));
    svg.append(rect);
  });
  return svg;
}
