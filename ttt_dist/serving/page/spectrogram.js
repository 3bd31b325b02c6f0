// The spectrogram of a waveform, drawn into a canvas: loudness by time and frequency, in dB below the loudest.

const SIZE = 512; // samples of a window
const TOP_HZ = 8000;
const RANGE_DB = 65;
const WINDOW = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));

// Power of the frequencies i / SIZE, i < SIZE / 2, of the window of `samples` around `centre`; silence beyond its ends.
export function power(samples, centre) {
  const real = Float32Array.from({ length: SIZE }, (_, i) => WINDOW[i] * (samples[Math.round(centre) - SIZE / 2 + i] ?? 0));
  const imaginary = new Float32Array(SIZE);
  transform(real, imaginary);
  return Float32Array.from({ length: SIZE / 2 }, (_, i) => real[i] ** 2 + imaginary[i] ** 2);
}

// The discrete Fourier transform in place (Cooley and Tukey); the length is a power of two.
function transform(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) for (const part of [real, imaginary]) [part[i], part[j]] = [part[j], part[i]];
  }
  for (let half = 1; half < n; half *= 2) {
    for (let k = 0; k < half; k++) {
      const cosine = Math.cos((Math.PI * k) / half), sine = -Math.sin((Math.PI * k) / half);
      for (let i = k; i < n; i += 2 * half) {
        const j = i + half;
        const re = real[j] * cosine - imaginary[j] * sine, im = real[j] * sine + imaginary[j] * cosine;
        [real[j], imaginary[j]] = [real[i] - re, imaginary[i] - im];
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}

export function drawSpectrogram(canvas, samples, sampleRate) {
  const { width, height } = canvas;
  const top = Math.min(TOP_HZ, sampleRate / 2);
  const columns = Array.from({ length: width }, (_, x) => power(samples, ((x + 0.5) * samples.length) / width));
  const loudest = columns.reduce((most, column) => column.reduce((a, b) => Math.max(a, b), most), 1e-9);
  const colours = palette(canvas);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    const bin = Math.min(SIZE / 2 - 1, Math.floor((((height - 0.5 - y) / height) * top * SIZE) / sampleRate));
    for (let x = 0; x < width; x++) {
      const level = 1 + (10 * Math.log10(columns[x][bin] / loudest + 1e-12)) / RANGE_DB;
      image.data.set(colours[Math.round(255 * Math.max(0, level))], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", `Spectrogram, ${(samples.length / sampleRate).toFixed(2)} s, up to ${top / 1000} kHz`);
}

// 256 colours from silent to loud, by the style sheet's --heat-0 to --heat-3.
function palette(element) {
  const style = getComputedStyle(element);
  const stops = [0, 1, 2, 3].map((i) => rgb(style.getPropertyValue(`--heat-${i}`)));
  return Array.from({ length: 256 }, (_, level) => {
    const at = (level / 255) * 3, low = Math.min(2, Math.floor(at));
    return [...stops[low].map((value, i) => value + (stops[low + 1][i] - value) * (at - low)), 255];
  });
}

// #rrggbb as three numbers.
export const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.trim().slice(at, at + 2), 16));
