"""The record of some steps: what metrics.jsonl gets every `telemetry.log_every` steps (docs/watching.md says what each key means)."""

import math
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from ttt_dist.config.run import Config
from ttt_dist.model.loss import p_bin_name
from ttt_dist.model.optimizer_groups import learnt_names
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.training.flops import ModelFlops, known_peak_tflops
from ttt_dist.training.group_losses import GroupLosses
from ttt_dist.training.step import PBin, StepResult

PHASES = ("data", "forward", "backward", "forward_backward", "optimizer", "communication")
Record = dict[str, float]


@dataclass(kw_only=True)
class MetricsAccumulator:
    """The steps since the last record."""

    flops: ModelFlops
    peak_flops: float | None
    """FLOP/s of all devices together; None: unknown, and so is the MFU."""
    sources: Sequence[str] = ("train",)
    """Names, in the order of the loader."""
    steps: list[StepResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, and of whole steps as `step`."""
    own_s: float | None = None
    """Seconds of this process's own work, of the steps in which it was measured, see `StepTimes`."""

    @classmethod
    def of_run(cls, config: Config, vocab_size: int) -> "MetricsAccumulator":
        """An empty window of this run; needs a process group."""
        peak = peak_tflops(config.telemetry.peak_tflops)
        learnt = learnt_names(parameter_shapes(config.model, vocab_size), config.train)
        learns_head = ("embed.weight" if config.model.tie_embeddings else "head.weight") in learnt
        return cls(
            flops=ModelFlops.of(config.model, vocab_size, learns_head),
            peak_flops=None if peak is None else peak * 1e12 * dist.get_world_size(),
            sources=list(config.data.prefixes()),
        )

    def add(self, result: StepResult, data_s: float, step_s: float) -> None:
        """Count one step: `data_s` waited for the loader, `step_s` in all, that wait included."""
        self.steps.append(result)
        for name, seconds in (*result.times.seconds.items(), ("data", data_s), ("step", step_s)):
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if result.times.own_s is not None:
            self.own_s = (self.own_s or 0.0) + data_s + result.times.own_s

    def record(self, lr: float) -> Record:
        """What the steps since the last record come to, and begin anew; collective. `lr` is that of the last step."""
        values = {
            **_of_step(self.steps[-1]),
            "lr": lr,
            **self._times(),
            **_by_p(self.steps),
            **self._by_group(),
            "memory_bytes": peak_memory(),
            **slowest(self.own_s),
        }
        self.steps, self.seconds, self.own_s = [], {}, None
        return values

    def _by_group(self) -> Record:
        """Losses by source and task, of the steps whose loss is finite."""
        sound = [step.groups for step in self.steps if math.isfinite(step.loss)]
        return GroupLosses.total(sound).record(self.sources) if sound else {}

    def _times(self) -> Record:
        """Mean seconds per step of each phase, and the rates that follow."""
        num_steps, step_s = len(self.steps), self.seconds["step"]
        counts = [result.counts for result in self.steps]
        useful = sum(c.useful_tokens for c in counts)
        values = {f"{phase}_s": self.seconds[phase] / num_steps for phase in PHASES if phase in self.seconds}
        values |= {
            "step_s": step_s / num_steps,
            "data_share": self.seconds["data"] / step_s,
            "useful_tokens_per_s": useful / step_s,
        }
        if self.peak_flops is not None:
            targets, pairs = sum(c.ar_tokens + c.nar_tokens for c in counts), sum(c.visible_pairs for c in counts)
            values["mfu"] = self.flops.useful(useful, targets, pairs) / step_s / self.peak_flops
        return values


def _of_step(result: StepResult) -> Record:
    return {
        **result.losses.record(),
        "ar_tokens": result.counts.ar_tokens,
        "nar_tokens": result.counts.nar_tokens,
        "grad_norm": result.grad_norm,
    }


def _by_p(steps: list[StepResult]) -> Record:
    """Mean cross-entropy and number of the NAR targets in each bin of p, of the steps whose loss is finite."""
    values: Record = {}
    sound = [step.nar_by_p for step in steps if math.isfinite(step.loss)]
    for number, bins in enumerate(zip(*sound, strict=True)):
        total = PBin(*map(sum, zip(*bins, strict=True)))
        name = p_bin_name(number)
        if total.num_tokens:
            values[f"nar_loss_{name}"] = total.loss_sum / total.num_tokens
        values[f"nar_tokens_{name}"] = total.num_tokens
    return values


def slowest(own_s: float | None) -> Record:
    """Which rank needed longest for its own work, and how many times the median; nothing where it is unknown. Collective."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    mine = torch.tensor([math.nan if own_s is None else own_s], dtype=torch.float64, device=device)
    gathered = mine.new_empty(dist.get_world_size())
    dist.all_gather_into_tensor(gathered, mine)
    seconds: list[float] = gathered.tolist()
    median = statistics.median_low(seconds)  # of two, the faster one
    if len(seconds) == 1 or not all(map(math.isfinite, seconds)) or median <= 0.0:
        return {}
    return {"slowest_rank": seconds.index(max(seconds)), "slowest_ratio": max(seconds) / median}


def peak_tflops(chosen: float) -> float | None:
    """TFLOP/s of one device: as chosen, or what is known of this GPU; None where neither is."""
    if chosen:
        return chosen
    return known_peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_memory() -> int:
    """Most bytes ever held by this process: device memory on CUDA, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
