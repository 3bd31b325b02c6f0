"""A tiny model that writes digits and speaks noise, and the served page of it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ttt_dist.audio.melvq import MelVQ, MelVQSettings
from ttt_dist.config import ModelConfig
from ttt_dist.decode_settings import DecodeSettings
from ttt_dist.inference.settings import as_flags
from ttt_dist.model.huggingface import export_folder
from ttt_dist.model.layers import PlainFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.objective import Objective
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = 8000
SETTINGS = DecodeSettings(block=8, steps=4, temperature=1.0, code_temperature=1.0, span_limit=24, max_text=12)


def make_model(folder: Path) -> Path:
    """Export random weights whose head likes words, starts of audio and ends of turns; the model's folder."""
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(RATE, generator=generator) * 0.1 for _ in range(4)]
    MelVQ.learn(waves, MelVQSettings(sample_rate=RATE, codebook_size=16)).save(folder / "codec")
    tokenizer = train_sentencepiece([" ".join(WORDS)] * 5, folder / "tokenizer", vocab_size=320)
    (folder / "template.json").write_text(json.dumps(TemplateSettings(name_speaker=True).to_dict()))
    layout = extend(tokenizer, 16)
    config = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_hidden_size=16, init_std=0.2)
    model = Transformer.for_layout(config, layout, PlainFactory(RandomWeights(2)))
    with torch.no_grad():
        model.embed.weight += 1.0  # all states share a direction, in which the head says what is likely
        liked = [token for token in range(tokenizer.size) if tokenizer.decode([token]).strip() in WORDS]
        model.head.weight[: layout.num_text_tokens] -= 0.3
        model.head.weight[liked] += 0.7
        model.head.weight[layout.begin_of_audio] += 0.45
        model.head.weight[layout.im_end] += 0.44
        model.head.weight[layout.end_of_audio_new] += 0.09
    export_folder(folder / "model", model.named_parameters(), config, layout, Objective(), folder)
    return folder / "model"


@contextmanager
def served(model: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run the command on a free port; its address, and the process."""
    command = [sys.executable, "ttt_dist/serve.py", "--model", str(model), "--port", "0", *as_flags(SETTINGS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            found = re.match(r"open (http://\S+/)", process.stdout.readline())
            assert found, process.stderr.read()
            yield found[1], process
        finally:
            process.kill()
