"""Settings of the training objective (method: training objective), and their changes in the course of a run."""

from bisect import bisect_right
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ttt_dist.util.errors import UserError

CHOICES = {
    "preset": ("recommended", "paper", "released"),
    "kind": ("ttt", "ar", "nar"),
    "masking": ("exact_count", "bernoulli"),
    "mix_unit": ("sample", "micro_batch"),
    "prompt_audio": ("bidirectional", "causal"),
    "normalisation": ("sample", "token"),
}
PROBABILITIES = ("p_mix", "p_prefix", "p_trunc", "audio_ar")
PRESETS = {"recommended": ("exact_count", 1.0), "paper": ("bernoulli", 0.0), "released": ("bernoulli", 0.0)}
"""What `masking` and `audio_ar` are where they are left open."""
MATTERS = {
    "ttt": (
        "masking",
        "noise_schedule",
        "audio_ar",
        "p_mix",
        "p_prefix",
        "p_trunc",
        "mix_unit",
        "prompt_audio",
        "normalisation",
    ),
    "ar": ("normalisation",),
    "nar": ("masking", "noise_schedule", "prompt_audio", "normalisation"),
}
"""Besides the kind, and `released`, the others of a preset being these."""
SILENT = {"noise_schedule": "linear"}
"""Settings that came later are not named where they are what was done before: checkpoints know their past by its words."""
FORMER_NAMES = {"corrected": "paper"}


@dataclass
class ObjectiveStage:
    """Settings from a step on, until the next stage; null: as in the objective itself."""

    from_step: int = 0
    """The first step of the stage; 0 for the first one."""
    preset: str | None = None
    """With it, masking and audio_ar are the preset's where the stage does not give them."""
    kind: str | None = None
    masking: str | None = None
    noise_schedule: str | None = None
    audio_ar: float | None = None
    p_mix: float | None = None
    p_prefix: float | None = None
    p_trunc: float | None = None
    mix_unit: str | None = None
    prompt_audio: str | None = None
    normalisation: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What it puts in the place of the objective's own settings."""
        given = {name: value for name, value in asdict(self).items() if name != "from_step" and value is not None}
        return {"masking": None, "audio_ar": None} | given if "preset" in given else given


@dataclass
class Objective:
    """Unified AR + absorbing-diffusion objective of arXiv 2509.20072, section 3; probabilities are the paper's."""

    preset: str = "recommended"
    """recommended | paper | released: `released` keeps the AR target of masked positions and draws the mix per micro-batch."""
    kind: str = "ttt"
    """ttt | ar | nar: the paper's method and its two baselines."""
    masking: str | None = None
    """exact_count | bernoulli: how many tokens are masked is drawn, or each token by itself; null: as the preset says."""
    noise_schedule: str = "linear"
    """linear | cosine | package.module:name: how often which share of the tokens is masked (sequence/noise_schedule.py)."""
    audio_ar: float | None = None
    """Probability that a sample in which BANOM noises nothing has causal response spans, whose codes are AR targets too;
    null: as the preset says."""
    p_mix: float = 0.3
    """BANOM: probability that nothing is noised and only the AR loss counts."""
    p_prefix: float = 0.3
    """PPM: probability that the audio before one chosen span stays clean and leaves the NAR loss."""
    p_trunc: float = 0.5
    """SST: probability that the last span of the response is cut."""
    mix_unit: str = "sample"
    """sample | micro_batch: what draws BANOM's choice together."""
    prompt_audio: str = "bidirectional"
    """bidirectional | causal: attention inside audio that the user gives."""
    normalisation: str = "sample"
    """sample | token: mean over samples of per-sample means, or over all targets of the global batch."""
    stages: list[ObjectiveStage] = field(default_factory=list)
    """Other settings for some steps of training, in order; the held-out loss is always that of the settings above."""

    def __post_init__(self) -> None:
        self.preset = FORMER_NAMES.get(self.preset, self.preset)

    def check(self, key: str = "objective") -> None:
        """Raise UserError naming the first setting below `key` that cannot be."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UserError(f"{key}.{name}={value!r}: choose one of {', '.join(choices)}")
        for name in PROBABILITIES:
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UserError(f"{key}.{name}={value}: a probability lies in 0..1")
        earlier = -1
        for number, stage in enumerate(self.stages):
            _check_start(stage.from_step, earlier, f"{key}.stages.{number}.from_step={stage.from_step}")
            replace(self, stages=[], **stage.given).check(f"{key}.stages.{number}")
            earlier = stage.from_step

    @property
    def mask_rule(self) -> str:
        """`masking`, or what the preset says."""
        return self.masking or PRESETS[self.preset][0]

    @property
    def p_audio_ar(self) -> float:
        """`audio_ar`, or what the preset says."""
        return PRESETS[self.preset][1] if self.audio_ar is None else self.audio_ar

    @property
    def keeps_masked_ar(self) -> bool:
        """Whether a masked position keeps its AR target: the released code's first fault, kept for comparison only."""
        return self.preset == "released"

    @property
    def mixes_per_micro_batch(self) -> bool:
        return self.mix_unit == "micro_batch" or self.preset == "released"

    @property
    def learns_audio_ar(self) -> bool:
        """Whether a model of both ways of writing audio comes of it, beside denoising."""
        return self.kind == "ttt" and self.p_mix * self.p_audio_ar > 0

    def resolved(self) -> "Objective":
        """The same with nothing left open, as it is recorded."""
        return replace(self, masking=self.mask_rule, audio_ar=self.p_audio_ar)

    def stage_at(self, step: int) -> int:
        """Number of the stage that a step lies in, counted from 0; -1 where there are no stages."""
        return bisect_right([stage.from_step for stage in self.stages], step) - 1

    def at(self, step: int) -> "Objective":
        """The settings that a step is trained by, without stages, nothing left open."""
        given = self.stages[self.stage_at(step)].given if self.stages else {}
        return replace(self, stages=[], **given).resolved()

    def past(self, step: int) -> dict[str, str]:
        """What decided the steps before `step`, by key: equal for two objectives that trained alike until then."""
        found: dict[str, str] = {}
        before = ""
        for start in [0, *(stage.from_step for stage in self.stages if 0 < stage.from_step < step)]:
            now = str(self.at(start))
            if now != before:
                found[f"objective from step {start}" if start else "objective"] = before = now
        return found

    def plain(self) -> dict[str, Any]:
        """All but the stages, by name, nothing left open."""
        return {name: value for name, value in asdict(self.resolved()).items() if name != "stages"}

    def __str__(self) -> str:
        """All that matters to what it does; stages are left out."""
        values = self.plain()
        parts = [f"preset {self.preset}"] if self.preset == "released" and self.kind == "ttt" else []
        told = [name for name in MATTERS[self.kind] if values[name] != SILENT.get(name)]
        return ", ".join([self.kind, *parts, *(f"{name} {values[name]}" for name in told)])


def _check_start(step: int, earlier: int, where: str) -> None:
    """Raise UserError unless stages begin at 0 (`earlier` -1: none is before) and then rise."""
    if earlier < 0 and step != 0:
        raise UserError(f"{where}: the first stage begins at step 0; set it, or put a stage before this one")
    if step <= earlier:
        raise UserError(f"{where} must be above {earlier}, where the stage before it begins")
