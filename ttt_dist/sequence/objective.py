"""Settings of the training objective (method: training objective)."""

from dataclasses import dataclass

from ttt_dist.errors import UserError

CHOICES = {
    "preset": ("corrected", "released"),
    "kind": ("ttt", "ar", "nar"),
    "mix_unit": ("sample", "micro_batch"),
    "prompt_audio": ("bidirectional", "causal"),
    "normalisation": ("sample", "token"),
}


@dataclass
class Objective:
    """Unified AR + absorbing-diffusion objective of arXiv 2509.20072, section 3; defaults are the paper's figures."""

    preset: str = "corrected"
    """corrected | released: `released` keeps the AR target of masked positions and draws the mix per micro-batch."""
    kind: str = "ttt"
    """ttt | ar | nar: the paper's method and its two baselines."""
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
    audio_ar: float = 0.0
    """Probability that a sample in which nothing is noised teaches its audio left to right, as an AR model writes it."""
    normalisation: str = "sample"
    """sample | token: mean over samples of per-sample means, or over all targets of the global batch."""

    def check(self) -> None:
        """Raise UserError naming the first setting that cannot be."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"objective.{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("p_mix", "p_prefix", "p_trunc"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"objective.{name}={getattr(self, name)}: a probability lies in 0..1")

    @property
    def keeps_masked_ar(self) -> bool:
        """Whether a masked position keeps its AR target: the released code's first fault, kept for comparison only."""
        return self.preset == "released"

    @property
    def mixes_per_micro_batch(self) -> bool:
        return self.mix_unit == "micro_batch" or self.preset == "released"
