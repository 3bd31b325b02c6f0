// The recording that is sent: from the microphone, a file, or dropped on the page.

import { Take } from "./microphone.js";
import { Sound, samplesOf, toWav } from "./sound.js";

export class Clip {
  // `recording` is null or its blob, name and, once the browser has read them, samples; `take` what is being recorded, from the press
  // of the button until it is kept or given up.
  constructor(find, onPlay) {
    Object.assign(this, { find, onPlay, recording: null, take: null });
    find("record").addEventListener("click", () => (this.take ? this.stop() : (this.taking = this.record())));
    find("remove").addEventListener("click", () => this.set(null));
    find("file").addEventListener("change", ({ target }) => target.files[0] && this.choose(target.files[0]));
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
    if (file) this.choose(file);
  }

  choose(file) {
    this.find("file").value = ""; // so that it can be chosen again
    if (!this.fits(file, file.name)) return;
    this.giveUp();
    this.set(file, file.name);
  }

  // Whether the server takes it.
  fits(blob, name) {
    if (blob.size <= this.maxBytes) return true;
    this.tell(`${name} is larger than ${Math.round(this.maxBytes / 2 ** 20)} MB; choose a shorter recording`, true);
    return false;
  }

  async set(blob, name = "") {
    const focused = document.activeElement.closest("#choose, #clip"); // before what is in it goes
    const recording = blob && { blob, name, samples: null };
    this.recording = recording;
    this.sound?.close();
    this.sound = null;
    this.tell("");
    this.find("clip").hidden = !recording;
    this.find("choose").hidden = Boolean(recording);
    this.find("clip-name").textContent = recording ? name : "";
    if (focused?.hidden) this.find(recording ? "clip-name" : "record").focus();
    this.find("sound").dispatchEvent(new Event("input", { bubbles: true }));
    if (recording) await this.read(recording);
  }

  // A file's bytes as they are now, since browsers send none that has changed on the disk, and its samples.
  async read(recording) {
    const { blob, name } = recording;
    const bytes = await blob.arrayBuffer().catch(() => null);
    if (this.recording !== recording) return;
    if (!bytes) {
      this.set(null);
      this.tell(`${name} cannot be read; choose another recording`, true);
      return;
    }
    recording.blob = new Blob([bytes], { type: blob.type });
    const samples = await samplesOf(recording.blob, this.sampleRate).catch(() => null); // the server may read what the browser does not
    if (this.recording !== recording || !samples) return;
    recording.samples = samples;
    this.sound = new Sound(this.find("clip-sound"), this.sampleRate, this.onPlay);
    this.sound.setSamples(samples);
    this.sound.setFile(recording.blob);
  }

  // At a place of its own: an answer may be made meanwhile, of which the page tells.
  tell(message, isBad = false) {
    this.find("clip-told").value = message;
    this.find("clip-told").classList.toggle("bad", isBad);
  }

  // Resolves with whether all went well; a file chosen meanwhile gives it up.
  async record() {
    const take = new Take();
    this.take = take;
    this.label("Stop recording", true);
    this.tell("Waiting for the microphone");
    this.find("record").focus();
    let blob = null;
    try {
      blob = await take.heard(() => {
        this.onPlay(); // else it hears what sounds
        this.tell("Recording");
      });
      if (this.take !== take) return true;
      this.label("Record", false);
      this.tell("Reading the recording");
      const file = await this.readable(blob);
      if (this.take !== take) return true;
      this.leave();
      if (!this.fits(...file)) return false;
      await this.set(...file);
    } catch (error) {
      if (this.take !== take) return true;
      this.leave();
      this.tell(blob ? "Nothing was recorded; try again" : `The microphone cannot be used: ${error.message}`, true);
      return false;
    }
    return true;
  }

  // What the browser recorded, and its name: as it is where the server reads it, else as WAV.
  async readable(blob) {
    if (this.readsWebM && blob.size) return [blob, `recording.${blob.type.endsWith("mp4") ? "m4a" : "webm"}`];
    return [toWav(await samplesOf(blob, this.sampleRate), this.sampleRate), "recording.wav"];
  }

  // End what is being recorded. Resolves once it is kept, with whether all went well.
  async stop() {
    if (!this.take?.hasBegun) this.giveUp();
    this.take?.end();
    return this.take ? this.taking : true;
  }

  giveUp() {
    if (!this.take) return;
    this.take.end();
    this.leave();
    this.tell("");
  }

  leave() {
    this.take = null;
    this.label("Record", false);
  }

  label(text, isRecording) {
    this.find("record").querySelector("span").textContent = text;
    this.find("record").classList.toggle("recording", isRecording);
  }
}
