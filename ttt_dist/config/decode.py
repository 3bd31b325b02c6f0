"""How to decode (docs/method.md#decoding)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ttt_dist.config.section import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability, Section, require
from ttt_dist.util import json_files
from ttt_dist.util.errors import UserError

GENERATION = "generation_config.json"
KEY = "ttt_decoding"
"""Of generation_config.json, whose other keys are those of transformers."""
MOST_AHEAD = 64
"""The largest block of audio_mode tidar: up to 4,223 rows a forward."""
BY_TASK = ("stop_at_last_span",)
"""What a task decides, and neither a model folder nor a flag."""
DENOISING = ("steps", "threshold", "remasking", "position_decay", "block_cache", "commit_power", "ends")
IDLE: dict[str, tuple[str, ...]] = {
    "diffusion": ("accept_ratio", "repeats"),
    "ar": ("block", *DENOISING, "cfg", "accept_ratio"),
    "verified": (),
    "tidar": DENOISING,
}
"""Settings that mean nothing to an audio_mode."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Section):
    """Decoding of one request. Defaults: greedy, the paper's block and steps per block."""

    block: PositiveInt = 32
    """Mask tokens that are appended to an open span at a time."""
    steps: PositiveInt = 10
    """Most forward passes that denoise one block; each commits its share of it, at least."""
    threshold: Probability = 0.0
    """Commit beyond the share whatever the model gives this probability, so that fewer forwards do; 0: never."""
    remasking: Literal["low_confidence", "margin", "entropy", "random"] = "low_confidence"
    """Which positions stay masked: those the model is least sure of, or any. Sure is a high probability of the chosen
    token, a wide margin between the two likeliest, or a low entropy of all."""
    position_decay: Annotated[float, Interval(ge=0, le=1000)] = 0.0
    """How much sooner masks nearer to the start are committed: what is sure counts exp(-position_decay) times as much with
    each place further on (PC-Sampler, arXiv 2508.13021). 0: the place does not matter; 100: from left to right."""
    block_cache: Literal["exact", "block_causal"] = "exact"
    """exact: an open span is recomputed in every forward, as training saw it. block_causal: its finished blocks are kept
    and no longer see later ones; an approximation that makes long spans cheaper."""
    cfg: NonNegativeFloat = 0.0
    """Classifier-free guidance s of spans: u + (1 + s)(c - u), u with all context masked. Above 0 each forward of a span
    takes two. Not trained for."""
    span_limit: PositiveInt = 640
    """Longest span, in tokens."""
    max_text: PositiveInt = 512
    """Most text tokens of a response, delimiters included."""
    max_codes: PositiveInt = 3000
    """Most audio tokens of a response, ends of spans included."""
    temperature: NonNegativeFloat = 0.0
    """Of text; 0 is greedy."""
    top_k: NonNegativeInt = 0
    """Sample text among the k likeliest tokens; 0: all."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample text among the likeliest tokens that together reach this probability."""
    code_temperature: NonNegativeFloat = 0.0
    """Of audio codes; 0 takes the likeliest."""
    stop_at_last_span: bool = False
    """Stop where the last span would open: all text is out by then (transcription)."""
    audio_mode: Literal["diffusion", "ar", "verified", "tidar"] = "diffusion"
    """How a `ttt` model writes audio. diffusion: blocks of masks are denoised. ar: one code per forward, left to right;
    for models that were trained so, too. verified: what `ar` writes, in fewer forwards: a denoised block is a draft, of which
    one causal forward accepts all that `ar` would have written. tidar: likewise, and the same forward makes the next draft: behind each
    token of the draft that it reads stands a block of masks, as in TiDAR (arXiv 2511.08923), which writes text so."""
    accept_ratio: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """verified, tidar: a code of the draft is kept where its probability is at least this share of the likeliest one's; 1: where it is
    what `ar` writes. Below 1 fewer forwards do, as speech does not hang on the one likeliest code."""
    repeats: Literal["likeliest", "drawn"] = "likeliest"
    """ar, verified, tidar, with codes that are not sampled: whether the code before comes again where that is likeliest.
    likeliest: it does, and so what lasts for a time, a pause, may never end. drawn: with its probability, by the seed and the
    place, and else the likeliest other."""
    commit_power: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Shares of a block: (s / steps) ** commit_power of it is committed after s forwards. 1: even; above 1: few at first."""
    ends: Literal["leftmost", "any", "causal"] = "leftmost"
    """Where an end of the span may be committed: where no mask is left before it, or at any mask. causal: blocks are
    denoised without ends, and one more forward reads each from left to right and says where the span ends."""

    def changed(self, **values: Any) -> "DecodeSettings":
        """With other values for some settings. Raises UserError that names the flag of one out of its range."""
        other = replace(self, **values)
        other.require_valid(named=lambda name: f"{name} (--{flag(name)})")
        return other

    def idle(self, kind: str = "ttt") -> set[str]:
        """Settings that change nothing of how a model of objective.kind writes by the others."""
        names = set(IDLE["ar" if kind == "ar" else self.audio_mode])
        if kind == "nar":
            return names | {"max_text", "temperature", "top_k", "top_p"}
        names |= {"repeats"} if self.code_temperature else set()
        return names | ({"top_k", "top_p"} if self.temperature == 0 else set())

    def require_mode(self, kind: str, learns_audio_ar: bool) -> None:
        """Raise UserError where a model of objective.kind and Objective.learns_audio_ar was not trained for this audio_mode."""
        mode = f"audio_mode (--audio-mode) is {self.audio_mode}, but this model"
        untaught = "(objective.audio_ar is 0, or both p_mix and p_draft)"
        denoise = "take --audio-mode diffusion (in a recipe evaluation.decode.audio_mode=diffusion)"
        if kind != "ttt" and self.audio_mode not in ("diffusion", kind):
            raise UserError(f"{mode} is of kind {kind}, which has one way to write audio; {denoise}")
        if self.audio_mode == "tidar" and self.block > MOST_AHEAD:
            raise UserError(
                f"block (--block) is {self.block}, but audio_mode tidar reads its square of masks in a forward; take up to {MOST_AHEAD}"
            )
        if self.audio_mode == "tidar" and self.cfg:
            raise UserError(f"cfg (--cfg) is {self.cfg:g}, but audio_mode tidar has no forward to guide; take --cfg 0")
        if kind == "nar" and self.ends == "causal":
            raise UserError(
                "ends (--ends) is causal, but this model is of kind nar, which reads nothing left to right; take --ends leftmost"
            )
        if kind == "ttt" and self.audio_mode == "diffusion" and self.ends == "causal" and not learns_audio_ar:
            raise UserError(
                f"ends (--ends) is causal, but this model never learnt to read audio left to right {untaught}; take --ends "
                "leftmost, or train with them above 0"
            )
        if kind == "ttt" and self.audio_mode != "diffusion" and not learns_audio_ar:
            raise UserError(
                f"{mode} never learnt to write audio left to right {untaught}; {denoise}, or train with them above 0"
            )


def flag(name: str) -> str:
    """The flag of a setting, without dashes in front."""
    return name.replace("_", "-")


DEFAULTS = DecodeSettings()
BEFORE = DecodeSettings(ends="any")
"""Of model folders that do not say how they are decoded: all defaults when they were written."""


def generation_json(
    config: Mapping[str, Any], settings: DecodeSettings | None, base_eos: Sequence[int] = ()
) -> dict[str, Any]:
    """The contents of generation_config.json beside a config.json: what transformers and its kin take of them, and ours.

    `base_eos` ended a text of the model that training began with; of its text it may still be the end.
    """
    eos = list(dict.fromkeys([config["eos_token_id"], *base_eos]))
    values: dict[str, Any] = {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    values["eos_token_id"] = eos if len(eos) > 1 else eos[0]
    if settings is None:
        return values
    if settings.temperature > 0:
        values |= {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    else:
        values["do_sample"] = False
    return values | {KEY: {name: value for name, value in asdict(settings).items() if name not in BY_TASK}}


def folder_settings(folder: Path) -> DecodeSettings:
    """How a model folder is decoded where nobody says otherwise. Raises UserError naming the file and what is wrong in it."""
    return stated_settings(folder) or BEFORE


def stated_settings(folder: Path) -> DecodeSettings | None:
    """How a model folder says that it is decoded; None where it does not. Raises UserError as `folder_settings`."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        values = json_files.parse(path.read_bytes())
        own = values.get(KEY, {}) if isinstance(values, dict) else None
        from ttt_dist.config.reading import build

        require(isinstance(own, dict), f"{KEY} must hold settings, not {own!r}; export the model again")
        for name in BY_TASK:
            require(name not in (own or ()), f"{KEY}.{name} is decided by the task; take it away")
        return build(DecodeSettings, own, KEY) if own else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
