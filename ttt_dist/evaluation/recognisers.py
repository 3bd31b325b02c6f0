"""Published recognisers as judges, through `transformers`: Whisper, and any network with a CTC head.

They are read from a local folder, safetensors only, no code of the folder's. Longer speech than a recogniser takes is
cut at quiet moments.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_dist.audio.batches import choose_device, fit, inference
from ttt_dist.audio.codecs.published import CONFIG, REMEDY, read_config
from ttt_dist.audio.codecs.transformers import BROKEN, quiet, read_model
from ttt_dist.evaluation.metrics.languages import language
from ttt_dist.inference.decoder import num_threads
from ttt_dist.util.errors import UserError, first_line

PIECE_S = 30  # longest speech that a CTC network hears at once; Whisper's folder says its own length
SEARCH = 1 / 6  # of a piece: it may end so much earlier, where it is quietest
WINDOW_S = 0.1  # over which loudness is measured
SHORTEST_S = 0.1  # shorter speech is filled up: convolutions want some samples
KNOWN = 0.9  # of the network's tokens; older tokenizers of Whisper lack those of time
BATCH = {"cpu": 4, "cuda": 32}  # pieces that Whisper hears side by side
TOKENS, TOKENS_PER_S = 32, 24  # of text that Whisper writes at most: more than anybody says


def pieces(wave: Tensor, longest: int, window: int) -> list[Tensor]:
    """[T] in parts of at most `longest` samples, each cut in the quietest `window` of its last SEARCH."""
    parts = []
    while len(wave) > longest:
        start = longest - max(int(longest * SEARCH) // window, 1) * window
        loudness = wave[start:longest].view(-1, window).square().mean(dim=1)
        end = start + int(loudness.argmin()) * window + window // 2
        parts.append(wave[:end])
        wave = wave[end:]
    return [*parts, wave]


class Recogniser(ABC):
    """A network with the folder's feature extractor and tokenizer; see `Judge`."""

    kind: str
    model_class: str
    batch_size = 1

    def __init__(self, folder: Path, device: str | None, model_types: Collection[str], is_exact: bool = True) -> None:
        """`is_exact`: in fp32 on every device, else in bf16 on CUDA. Raises UserError naming what is missing or wrong."""
        found = read_config(folder).get("model_type")
        if found not in model_types:
            wanted = ", ".join(sorted(model_types))
            raise UserError(
                f"{folder / CONFIG}: holds a model of type {found!r}; {self.kind}:DIR wants one of {wanted}"
            )
        self.name, self.folder, self.device = f"{self.kind}:{folder}", folder, choose_device(device)
        self.extractor = _load("AutoFeatureExtractor", folder)
        self.tokenizer = _load("AutoTokenizer", folder)
        dtype = torch.float32 if is_exact or self.device.type == "cpu" else torch.bfloat16
        model = read_model(self.kind, self.model_class, folder, dtype)
        self.model = model.eval().requires_grad_(False).to(self.device)
        if len(self.tokenizer) < KNOWN * model.config.vocab_size:  # one without its files is empty, and does not say so
            raise UserError(
                f"{folder}: its Tokenizer knows {len(self.tokenizer)} tokens, the network {model.config.vocab_size}; {REMEDY}"
            )
        self.sample_rate: int = self.extractor.sampling_rate
        self.longest = PIECE_S * self.sample_rate

    @abstractmethod
    def recognise(self, batch: Sequence[Tensor], lang: str | None) -> list[str]:
        """Texts of up to `batch_size` waveforms of at most `longest` samples, of one language."""

    def transcribe(
        self, waves: Sequence[Tensor], langs: Sequence[str | None], on_done: Callable[[], None] = lambda: None
    ) -> list[str]:
        """As `Judge`."""
        window = int(WINDOW_S * self.sample_rate)
        parts = [(owner, part) for owner, wave in enumerate(waves) for part in pieces(wave, self.longest, window)]
        left, texts = Counter(owner for owner, _ in parts), [""] * len(parts)
        for index, text in self._heard([part for _, part in parts], [langs[owner] for owner, _ in parts]):
            texts[index] = text.strip()
            owner = parts[index][0]
            left[owner] -= 1
            if not left[owner]:
                on_done()
        joined: list[list[str]] = [[] for _ in waves]
        for (owner, _), text in zip(parts, texts, strict=True):
            joined[owner].append(text)
        return [" ".join(filter(None, part)) for part in joined]

    def _heard(self, parts: Sequence[Tensor], langs: Sequence[str | None]) -> Iterator[tuple[int, str]]:
        """(index, text) of each part. Where one operation leaves cores of the CPU idle, batches are heard side by side."""
        batches = list(self._batches(langs))

        def hear(batch: Sequence[int]) -> list[str]:
            return self.recognise([parts[index] for index in batch], langs[batch[0]])

        # What transformers may say is set for the whole process, so not by each thread.
        with quiet(), ThreadPoolExecutor(num_threads(self.device)) as pool:
            for batch, texts in zip(batches, pool.map(hear, batches), strict=True):
                yield from zip(batch, texts, strict=True)

    def _batches(self, langs: Sequence[str | None]) -> Iterator[list[int]]:
        """Indices, those of one language together."""
        by_lang = defaultdict(list)
        for index, lang in enumerate(langs):
            by_lang[lang].append(index)
        for same in by_lang.values():
            yield from (same[start : start + self.batch_size] for start in range(0, len(same), self.batch_size))


class Whisper(Recogniser):
    """Whisper, greedy, in the item's language where the folder knows it, else in the one that it hears."""

    kind, model_class = "whisper", "WhisperForConditionalGeneration"

    def __init__(self, folder: Path, device: str | None = None) -> None:
        super().__init__(folder, device, {"whisper"}, is_exact=False)
        self.batch_size = BATCH[self.device.type]
        self.longest = self.extractor.n_samples
        settings = self.model.generation_config
        self.most_tokens = settings.max_length or self.model.config.max_target_positions
        is_english = not getattr(settings, "is_multilingual", True)
        self.languages = None if is_english else getattr(settings, "lang_to_id", None)

    def recognise(self, batch: Sequence[Tensor], lang: str | None) -> list[str]:
        """As `Recogniser`; every piece is filled up to the same length, so none depends on another."""
        inputs = self.extractor([part.numpy() for part in batch], sampling_rate=self.sample_rate, return_tensors="pt")
        features = inputs.input_features.to(self.device, self.model.dtype)
        most = [TOKENS + TOKENS_PER_S * len(part) // self.sample_rate for part in batch]
        # A text that repeats itself goes on up to the model's last position, and its batch waits for it.
        limit = {"max_new_tokens": max(most)} if max(most) < self.most_tokens // 2 else {}
        with inference():
            ids = self.model.generate(features, do_sample=False, num_beams=1, **limit, **self._task(lang))
        return [self.tokenizer.decode(row[:end], skip_special_tokens=True) for row, end in zip(ids, most, strict=True)]

    def _task(self, lang: str | None) -> dict[str, Any]:
        if self.languages is None:
            return {}
        codes = (language(lang), "zh" if language(lang) == "yue" else None)  # older folders know Cantonese as Chinese
        return {
            "task": "transcribe",
            "language": next((code for code in codes if f"<|{code}|>" in self.languages), None),
        }


class Ctc(Recogniser):
    """A network with a CTC head (wav2vec 2.0, HuBERT, WavLM, Parakeet, ...): the likeliest token of each frame.

    Like Paraformer it writes all text at once; of Paraformer itself `transformers` has no code. One waveform at a time,
    because these networks differ in what they make of padding.
    """

    kind, model_class = "ctc", "AutoModelForCTC"

    def __init__(self, folder: Path, device: str | None = None) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

        super().__init__(folder, device, MODEL_FOR_CTC_MAPPING_NAMES)

    def recognise(self, batch: Sequence[Tensor], lang: str | None) -> list[str]:
        """As `Recogniser`, whatever the language."""
        wave = fit(batch[0], max(len(batch[0]), int(SHORTEST_S * self.sample_rate)))
        inputs = self.extractor(wave.numpy(), sampling_rate=self.sample_rate, return_tensors="pt").to(self.device)
        with inference():
            ids = self.model(**inputs).logits.argmax(dim=-1)
        text = str(self.tokenizer.decode(ids[0]))  # told to skip special tokens it skips blanks: "all" becomes "al"
        return [re.sub("|".join(map(re.escape, self.tokenizer.all_special_tokens)), "", text)]


def _load(auto_class: str, folder: Path) -> Any:
    import transformers

    with quiet():
        try:
            return getattr(transformers, auto_class).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (*BROKEN, ImportError) as error:
            what = auto_class.removeprefix("Auto")
            raise UserError(f"{folder}: its {what} cannot be read ({first_line(error)}); {REMEDY}") from error
