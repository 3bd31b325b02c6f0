// The recording that is sent: from the microphone, a file, or dropped on the page.

export class Clip {
  constructor(find, tell) {
    this.find = find;
    this.tell = tell;
    this.blob = null;
    this.recorder = null;
    find("record").addEventListener("click", () => (this.recorder ? this.recorder.stop() : this.record()));
    find("remove").addEventListener("click", () => this.set(null));
    find("file").addEventListener("change", ({ target }) => target.files[0] && this.set(target.files[0], target.files[0].name));
    for (const kind of ["dragover", "dragleave", "drop"]) find("sound").addEventListener(kind, (event) => this.drag(event));
  }

  configure({ sample_rate, max_upload }) {
    this.sampleRate = sample_rate;
    this.maxBytes = max_upload;
  }

  drag(event) {
    event.preventDefault();
    this.find("sound").classList.toggle("over", event.type === "dragover");
    const [file] = event.type === "drop" ? event.dataTransfer.files : [];
    if (file) this.set(file, file.name);
  }

  set(blob, name = "") {
    const player = this.find("clip-player");
    URL.revokeObjectURL(player.src);
    if (blob?.size > this.maxBytes) {
      this.tell(`${name} is larger than ${Math.round(this.maxBytes / 2 ** 20)} MB; choose a shorter recording`, "error");
      blob = null;
    } else {
      this.tell("Ready");
    }
    [this.blob, this.name] = [blob, name];
    this.find("file").value = "";
    this.find("clip").hidden = !blob;
    this.find("choose").hidden = Boolean(blob);
    this.find("clip-name").textContent = name;
    if (blob) player.src = URL.createObjectURL(blob);
    else player.removeAttribute("src");
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
        this.recorder = null;
        this.label("Record", false);
        try {
          this.set(await asWav(new Blob(pieces), this.sampleRate), "recording.wav");
        } catch {
          this.tell("nothing was recorded; try again", "error");
        }
      };
      this.recorder.start();
      this.label("Stop recording", true);
      this.tell("Recording");
    } catch (error) {
      this.tell(`the microphone cannot be used: ${error.message}`, "error");
    }
    button.focus();
  }

  label(text, isRecording) {
    this.find("record").querySelector("span").textContent = text;
    this.find("record").classList.toggle("recording", isRecording);
  }
}

// What the browser recorded, as a mono WAV of 16 bits at the model's rate.
async function asWav(blob, sampleRate) {
  const decoded = await new OfflineAudioContext(1, 1, sampleRate).decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  const view = new DataView(new ArrayBuffer(44 + decoded.length * 2));
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
  view.setUint32(40, decoded.length * 2, true);
  for (let index = 0; index < decoded.length; index++) {
    const sample = channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length;
    view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, sample)) * 32767, true);
  }
  return new Blob([view], { type: "audio/wav" });
}
