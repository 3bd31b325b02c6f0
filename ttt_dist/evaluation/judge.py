"""Judges: what turns speech into text so that it can be scored. Here, the model itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from ttt_dist.audio import Codec
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.settings import DecodeSettings
from ttt_dist.sequence.templates import ChatTemplate


class ModelJudge:
    """Transcribes with the model's own ASR prompt, greedy text whatever the settings say about sampling."""

    name = "the model itself"

    def __init__(self, decoder: Decoder, codec: Codec, template: ChatTemplate, settings: DecodeSettings) -> None:
        self.decoder = decoder
        self.codec = codec
        self.template = template
        self.settings = replace(settings, temperature=0.0, code_temperature=0.0, stop_at_last_span=True)

    def transcribe(self, waves: Sequence[Tensor], on_done: Callable[[], None] = lambda: None) -> list[str]:
        """Texts of waveforms [T_i] at the codec's sample rate."""
        requests = [Request(self.template.asr_prompt(codes)) for codes in self.codec.encode(waves)]
        return [result.text for result in self.decoder.generate(requests, self.settings, on_done)]
