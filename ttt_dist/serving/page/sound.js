// A recording to be seen and heard: a button, its spectrogram with a place in it that can be moved, and a link to store it.

import { drawSpectrogram } from "./spectrogram.js";

let playing = null;

export class Sound {
  // `place` takes the elements; `onPlay` is called before it sounds.
  constructor(place, sampleRate, onPlay = () => {}) {
    this.root = document.getElementById("sound-form").content.firstElementChild.cloneNode(true);
    place.replaceChildren(this.root);
    this.part = (selector) => this.root.querySelector(selector);
    this.sampleRate = sampleRate;
    this.audio = this.part("audio");
    this.seconds = 0;
    this.part(".play").addEventListener("click", () => {
      if (!this.audio.paused) return this.audio.pause();
      onPlay();
      this.play();
    });
    this.part("input").addEventListener("input", ({ target }) => this.moveTo(Number(target.value)));
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.show());
    this.gone = new AbortController();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(), { signal: this.gone.signal });
  }

  // What there is to be seen: samples from -1 to 1 at the sound's rate.
  setSamples(samples) {
    this.samples = samples;
    this.seconds = samples.length / this.sampleRate;
    this.part(".length").textContent = `${this.seconds.toFixed(2)} s`;
    this.part("input").max = this.seconds;
    this.draw();
  }

  // What there is to be heard; `fileName` where it can be stored.
  setFile(blob, fileName = "") {
    this.audio.src = URL.createObjectURL(blob);
    this.part(".play").disabled = this.part("input").disabled = false;
    if (fileName) Object.assign(this.part("a"), { href: this.audio.src, download: fileName, hidden: false });
  }

  draw() {
    if (this.samples?.length) drawSpectrogram(this.part("canvas"), this.samples, this.sampleRate);
    this.part("input").title = this.part("canvas").ariaLabel;
  }

  play() {
    if (playing !== this) playing?.audio.pause();
    playing = this;
    this.audio.play().catch(() => {}); // paused again before it began
  }

  moveTo(seconds) {
    this.audio.currentTime = seconds;
    this.show();
  }

  show() {
    const isPlaying = !this.audio.paused;
    this.root.classList.toggle("is-playing", isPlaying);
    this.part(".play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    this.part("input").value = this.audio.currentTime;
    this.part(".head").style.left = `${(100 * Math.min(this.audio.currentTime, this.seconds)) / (this.seconds || 1)}%`;
    if (isPlaying) requestAnimationFrame(() => this.show());
  }

  // Stop, and free what the browser holds.
  close() {
    this.gone.abort();
    this.audio.pause();
    URL.revokeObjectURL(this.audio.src);
    this.root.remove();
  }
}

export const isSounding = () => Boolean(playing && !playing.audio.paused);

export function pauseSound() {
  playing?.audio.pause();
}

// The samples of a file at a rate, the mean of its channels. Rejects where the browser cannot read it.
export async function samplesOf(blob, sampleRate) {
  const decoded = await new OfflineAudioContext(1, 1, sampleRate).decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  if (channels.length === 1) return channels[0];
  return Float32Array.from(channels[0], (_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

// Samples as a mono WAV of 16 bits.
export function toWav(samples, sampleRate) {
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, index) => view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}
