// The recording that is sent: from the microphone, a file, or dropped on the page.

import { Sound, samplesOf } from "./sound.js";

export class Clip {
  // `recording` is null or its blob, name and, once the browser has read them, samples.
  constructor(find, onPlay) {
    Object.assign(this, { find, onPlay, recording: null, recorder: null });
    find("record").addEventListener("click", () => (this.recorder ? this.stop() : this.record()));
    find("remove").addEventListener("click", () => {
      this.set(null);
      find("record").focus();
    });
    find("file").addEventListener("change", ({ target }) => target.files[0] && this.set(target.files[0], target.files[0].name));
    for (const kind of ["dragover", "dragleave", "drop"]) find("sound").addEventListener(kind, (event) => this.drag(event));
  }

  configure({ sample_rate, max_upload, formats }) {
    [this.sampleRate, this.maxBytes] = [sample_rate, max_upload];
    this.readsWebM = formats.includes("WebM");
    this.find("formats").textContent = formats.join(", ");
    this.find("file").accept = ["audio/*", "video/webm", "video/mp4", ".opus", ...formats.map((format) => `.${format.toLowerCase()}`)].join();
  }

  drag(event) {
    event.preventDefault();
    this.find("sound").classList.toggle("over", event.type === "dragover");
    const [file] = event.type === "drop" ? event.dataTransfer.files : [];
    if (file) this.set(file, file.name);
  }

  async set(blob, name = "") {
    this.sound?.close();
    this.sound = null;
    const isLarge = blob?.size > this.maxBytes;
    this.tell(isLarge ? `${name} is larger than ${Math.round(this.maxBytes / 2 ** 20)} MB; choose a shorter recording` : "", isLarge);
    const recording = blob && !isLarge ? { blob, name, samples: null } : null;
    this.recording = recording;
    this.find("file").value = "";
    this.find("clip").hidden = !recording;
    this.find("choose").hidden = Boolean(recording);
    this.find("clip-name").textContent = name;
    if (!recording) return;
    recording.samples = await samplesOf(blob, this.sampleRate).catch(() => null); // the server may read what the browser does not
    if (this.recording !== recording || !recording.samples) return;
    this.sound = new Sound(this.find("clip-sound"), this.sampleRate, this.onPlay);
    this.sound.setSamples(recording.samples);
    this.sound.setFile(blob);
  }

  // At a place of its own: an answer may be made meanwhile, of which the page tells.
  tell(message, isBad = false) {
    this.find("clip-told").value = message;
    this.find("clip-told").classList.toggle("bad", isBad);
  }

  async record() {
    const button = this.find("record");
    try {
      if (!navigator.mediaDevices) throw new Error("browsers give the microphone to pages of this machine or over https only");
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const pieces = [];
      this.recorder = new MediaRecorder(stream);
      this.recorder.ondataavailable = ({ data }) => pieces.push(data);
      this.recorder.onstop = async () => {
        for (const track of stream.getTracks()) track.stop();
        const { mimeType } = this.recorder;
        this.recorder = null;
        this.label("Record", false);
        await this.keep(new Blob(pieces, { type: mimeType.split(";")[0] })).catch(() => this.tell("Nothing was recorded; try again", true));
      };
      this.recorder.start();
      this.label("Stop recording", true);
      this.tell("Recording");
    } catch (error) {
      this.tell(`The microphone cannot be used: ${error.message}`, true);
    }
    button.focus();
  }

  // What the browser recorded: as it is where the server reads it, else as WAV.
  async keep(blob) {
    if (this.readsWebM && blob.size) return this.set(blob, `recording.${blob.type.endsWith("mp4") ? "m4a" : "webm"}`);
    return this.set(toWav(await samplesOf(blob, this.sampleRate), this.sampleRate), "recording.wav");
  }

  stop() {
    this.recorder?.stop();
  }

  label(text, isRecording) {
    this.find("record").querySelector("span").textContent = text;
    this.find("record").classList.toggle("recording", isRecording);
  }
}

// Samples as a mono WAV of 16 bits.
function toWav(samples, sampleRate) {
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
