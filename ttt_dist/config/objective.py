"""Settings of the training objective (docs/method.md#the-objective), and their changes in the course of a run."""

from bisect import bisect_right
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from ttt_dist.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, Section, require

Preset = Literal["recommended", "paper", "released"]
Kind = Literal["ttt", "ar", "nar"]
Masking = Literal["exact_count", "bernoulli"]
MixUnit = Literal["sample", "micro_batch"]
PromptAudio = Literal["bidirectional", "causal"]
Normalisation = Literal["sample", "token"]
PRESETS: dict[str, tuple[Masking, float]] = {
    "recommended": ("exact_count", 1.0),
    "paper": ("bernoulli", 0.0),
    "released": ("bernoulli", 0.0),
}
"""What `masking` and `audio_ar` are where they are left open."""
MATTERS = {
    "ttt": (
        "masking",
        "noise_schedule",
        "audio_ar",
        "p_mix",
        "p_prefix",
        "p_trunc",
        "p_draft",
        "mix_unit",
        "prompt_audio",
        "normalisation",
        "ar_weight",
        "nar_weight",
        "z_loss",
    ),
    "ar": ("normalisation", "z_loss"),
    "nar": ("masking", "noise_schedule", "prompt_audio", "normalisation"),
}
"""Besides the kind, and `released`, the others of a preset being these."""
DEFAULT_PRESET: Preset = "recommended"
FORMER_PRESETS = {"corrected": "paper"}
SILENT = {"p_draft": 0.0, "noise_schedule": "linear", "z_loss": 0.0, "ar_weight": 1.0, "nar_weight": 1.0}
"""Settings that came later are not named where they are what was done before: checkpoints know their past by its words."""


@dataclass(kw_only=True)
class ObjectiveStage(Section):
    """Settings from a step on, until the next stage; null: as in the objective itself."""

    from_step: NonNegativeInt = 0
    """The first step of the stage; 0 for the first one."""
    preset: Preset | None = None
    """With it, masking and audio_ar are the preset's where the stage does not give them."""
    kind: Kind | None = None
    masking: Masking | None = None
    noise_schedule: str | None = None
    audio_ar: Probability | None = None
    p_mix: Probability | None = None
    p_prefix: Probability | None = None
    p_trunc: Probability | None = None
    p_draft: Probability | None = None
    mix_unit: MixUnit | None = None
    prompt_audio: PromptAudio | None = None
    normalisation: Normalisation | None = None
    ar_weight: PositiveFloat | None = None
    nar_weight: PositiveFloat | None = None
    z_loss: NonNegativeFloat | None = None

    FORMER_VALUES: ClassVar = {"preset": FORMER_PRESETS}

    @property
    def given(self) -> dict[str, Any]:
        """What it puts in the place of the objective's own settings."""
        given = {name: value for name, value in asdict(self).items() if name != "from_step" and value is not None}
        return {"masking": None, "audio_ar": None} | given if "preset" in given else given


@dataclass(kw_only=True)
class Objective(Section):
    """Unified AR + absorbing-diffusion objective of arXiv 2509.20072, section 3; probabilities are the paper's."""

    preset: Preset | None = None
    """recommended | paper | released: `released` keeps the AR target of masked positions and draws the mix per micro-batch;
    null: recommended, and in a run that goes on what it began with."""
    kind: Kind = "ttt"
    """ttt | ar | nar: the paper's objective and its two baselines."""
    masking: Masking | None = None
    """exact_count | bernoulli: how many tokens are masked is drawn, or each token by itself; null: as the preset says."""
    noise_schedule: str = "linear"
    """linear | cosine | package.module:name: how often which share of the tokens is masked (sequence/noise_schedule.py)."""
    audio_ar: Probability | None = None
    """Probability that a sample in which BANOM noises nothing has causal response spans, whose codes are AR targets too;
    null: as the preset says."""
    p_mix: Probability = 0.3
    """BANOM: probability that nothing is noised and only the AR loss counts."""
    p_prefix: Probability = 0.3
    """PPM: probability that the audio before one chosen span stays clean and leaves the NAR loss."""
    p_trunc: Probability = 0.5
    """SST: probability that the last span of the response is cut."""
    p_draft: Probability = 0.0
    """Probability that a sample that is noised has its response spans as drafts of audio_mode tidar meet them: codes
    before a place of each span stay, causal, and all from there on are masked."""
    mix_unit: MixUnit = "sample"
    """sample | micro_batch: what draws BANOM's choice together."""
    prompt_audio: PromptAudio = "bidirectional"
    """bidirectional | causal: attention inside audio that the user gives."""
    normalisation: Normalisation = "sample"
    """sample | token: mean over samples of per-sample means, or over all targets of the global batch."""
    ar_weight: PositiveFloat = 1.0
    """Of ttt: what the AR loss counts."""
    nar_weight: PositiveFloat = 1.0
    """Of ttt: what the NAR loss counts."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the z-loss at AR targets: the square of the logarithm of the sum of exponentials of all logits (arXiv 2204.02311)."""
    stages: list[ObjectiveStage] = field(default_factory=list)
    """Other settings for some steps of training, in order; the held-out loss is always that of the settings above."""

    FORMER_VALUES: ClassVar = {"preset": FORMER_PRESETS}

    def check(self, key: str) -> None:
        """Raise UserError unless stages begin at 0 and then rise."""
        earlier = -1
        for number, stage in enumerate(self.stages):
            where = f"{key}.stages.{number}.from_step={stage.from_step}"
            require(
                earlier >= 0 or stage.from_step == 0,
                f"{where}: the first stage begins at step 0; set it, or put a stage before this one",
            )
            require(stage.from_step > earlier, f"{where} must be above {earlier}, where the stage before it begins")
            earlier = stage.from_step

    @property
    def mask_rule(self) -> Masking:
        """`masking`, or what the preset says."""
        return self.masking or PRESETS[self.preset or DEFAULT_PRESET][0]

    @property
    def p_audio_ar(self) -> float:
        """`audio_ar`, or what the preset says."""
        return PRESETS[self.preset or DEFAULT_PRESET][1] if self.audio_ar is None else self.audio_ar

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
        causal = self.p_mix + (1 - self.p_mix) * self.p_draft
        return self.kind == "ttt" and causal * self.p_audio_ar > 0

    def resolved(self) -> "Objective":
        """The same with nothing left open, as it is recorded."""
        preset = self.preset or DEFAULT_PRESET
        return replace(self, preset=preset, masking=self.mask_rule, audio_ar=self.p_audio_ar)

    def going_on(self, before: "Objective") -> "Objective":
        """The same for a run that was trained by `before` so far: without a preset of its own, what is left open is as it was there."""
        if self.preset is not None:
            return self.resolved()
        masking = before.mask_rule if self.masking is None else self.masking
        audio_ar = before.p_audio_ar if self.audio_ar is None else self.audio_ar
        return replace(self, preset=before.preset, masking=masking, audio_ar=audio_ar).resolved()

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
