// What the microphone hears, from the asking for it to the end.

export class Take {
  // Resolves with what was recorded up to end(), with null where that came before the microphone was given. `onStart`: it records.
  async heard(onStart) {
    if (!navigator.mediaDevices) throw new Error("browsers give the microphone to pages of this machine or over https only");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    try {
      if (this.hasEnded) return null;
      const recorder = new MediaRecorder(stream), pieces = [];
      recorder.ondataavailable = ({ data }) => pieces.push(data);
      const stopped = new Promise((done) => (recorder.onstop = done));
      recorder.start();
      this.recorder = recorder;
      onStart();
      await stopped;
      return new Blob(pieces, { type: recorder.mimeType.split(";")[0] });
    } finally {
      for (const track of stream.getTracks()) track.stop();
    }
  }

  get hasBegun() {
    return Boolean(this.recorder);
  }

  end() {
    this.hasEnded = true;
    if (this.recorder?.state === "recording") this.recorder.stop();
  }
}
