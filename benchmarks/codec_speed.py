"""How fast each codec encodes, at its published size and with random weights: hours of audio per hour of encoding.

On CPU it is hours per hour of one core (one thread, time of the process), on CUDA hours per hour. Codes mean nothing
here, but no network's work depends on the values of its weights. Sizes:

- melvq: its defaults (16 kHz, 25 Hz, 512 codes), learnt on the same synthetic waves.
- glm4voice: config.json of the published tokenizer: 16 layers of 1,280 with 20 heads and an MLP of 5,120, 16,384 codes.
- encodec, mimi, neucodec, xcodec, xcodec2: the defaults of their config classes in transformers, which are the sizes of
  facebook/encodec_24khz, kyutai/mimi, neuphonic/neucodec, hf-audio/xcodec-hubert-librispeech and HKUSTAudio/xcodec2-hf.
- dac: the defaults but for hop and codebooks, which no published model has; here those of descript/dac_16khz.
- higgs: the defaults but for hop and bandwidths; here those of bosonai/higgs-audio-v2-tokenizer.

All codebooks of a codec are used. What encoding does beside the network (features, batches, flattening) counts.
"""

import gc
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ttt_dist.audio import Codec, load_codec
from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.audio.codecs.whisper_vq import FIXED, WhisperVQ, WhisperVQConfig
from ttt_dist.util.console import print_rank0

MOST_CPU_SECONDS = 100.0  # of encoding per codec: slower ones encode less audio
PROBE_S = 4.0
LEARN_S = 120.0  # audio that melvq is learnt on
GLM4VOICE: dict[str, Any] = FIXED | {
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "pooling_kernel_size": 4,
    "pooling_position": 16,
    "quantize_position": 16,
    "quantize_vocab_size": 16_384,
    "quantize_causal_block_size": 200,
}
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "mimi": ("Mimi", {}),
    "encodec": ("Encodec", {}),
    "dac": ("Dac", {"downsampling_ratios": [2, 4, 5, 8], "upsampling_ratios": [8, 5, 4, 2], "n_codebooks": 12}),
    "xcodec": ("Xcodec", {}),
    "xcodec2": ("Xcodec2", {}),
    "neucodec": ("NeuCodec", {}),
    "higgs": (
        "HiggsAudioV2Tokenizer",
        {
            "acoustic_model_config": {
                "model_type": "dac",
                "encoder_hidden_size": 64,
                "hidden_size": 256,
                "decoder_hidden_size": 1024,
                "downsampling_ratios": [8, 5, 4, 2, 3],
                "upsampling_ratios": [8, 5, 4, 2, 3],
            },
            "target_bandwidths": [0.5, 1, 1.5, 2],
        },
    ),
}
"""Stem of the classes in transformers, and what differs from the config's defaults."""


def encode_rates(folder: Path, device: str, seconds: float) -> dict[str, float]:
    """Hours of audio per hour of encoding, by codec, from `seconds` of audio each (fewer where a CPU is too slow).

    Weights lie under `folder` while their codec is measured: 2.5 GB at most, and as much memory again.
    """
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)
    rates = {}
    for name in ("melvq", "glm4voice", *PRETRAINED):
        place = folder / name
        write_codec(name, place)
        codec = load_codec(f"{name}:{place}", device=device)
        shutil.rmtree(place)
        rates[name] = encode_rate(codec, device, seconds)
        del codec
        gc.collect()
        torch.cuda.empty_cache()  # nothing without CUDA
    return rates


def encode_rate(codec: Codec, device: str, seconds: float) -> float:
    """The figure of one codec, also told."""
    codec.encode(speech_like(1.0, codec.sample_rate))
    if device == "cpu":
        probed = encode_time(codec, device, speech_like(PROBE_S, codec.sample_rate))
        seconds = min(seconds, math.ceil(MOST_CPU_SECONDS * PROBE_S / probed))
    taken = encode_time(codec, device, speech_like(seconds, codec.sample_rate))
    rate = float(f"{seconds / taken:.3g}")
    print_rank0(f"{codec.name}: {rate:g} hours of audio per hour, from {seconds:g} s in {taken:.2f} s")
    return rate


def encode_time(codec: Codec, device: str, waves: list[Tensor]) -> float:
    """Seconds of one `encode`: of the process on CPU, of the clock on CUDA."""
    start = now(device)
    codec.encode(waves)
    return now(device) - start


def now(device: str) -> float:
    """Seconds since some moment, when all that was asked for is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def speech_like(seconds: float, sample_rate: int, seed: int = 0) -> list[Tensor]:
    """Waves of about 2 to 15 s, `seconds` in all: voices with a pitch of their own, in syllables, over a little noise."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(2, 15, max(1, round(seconds / 8.5)))
    waves = []
    for length in lengths * (seconds / lengths.sum()):
        time_s = np.arange(round(length * sample_rate)) / sample_rate
        pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time_s))
        phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
        voice = sum(np.sin(number * phase) / number for number in range(1, 16))
        syllables = np.clip(np.sin(2 * np.pi * rng.uniform(3, 5) * time_s), 0, 1)
        wave = 0.2 * syllables * voice + 0.01 * rng.standard_normal(len(time_s))
        waves.append(torch.from_numpy(wave.astype(np.float32)))
    return waves


def write_codec(name: str, folder: Path) -> None:
    """A folder of the codec as it is published (melvq: as it is saved)."""
    folder.mkdir(parents=True)
    if name == "melvq":
        settings = MelVQSettings()
        MelVQ.learn(speech_like(LEARN_S, settings.sample_rate, seed=1), settings).save(folder)
    elif name == "glm4voice":
        model = WhisperVQ(WhisperVQConfig.read(GLM4VOICE, folder / "config.json"))
        (folder / "config.json").write_text(json.dumps(GLM4VOICE), encoding="utf-8")
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        write_pretrained(name, folder)


def write_pretrained(name: str, folder: Path) -> None:
    """A model of transformers as its class initialises it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    stem, settings = PRETRAINED[name]
    config = getattr(transformers, f"{stem}Config")(**settings)
    getattr(transformers, f"{stem}Model")(config).save_pretrained(folder)
