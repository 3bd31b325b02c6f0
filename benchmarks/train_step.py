"""One training step (forward, backward, AdamW) on samples of the released vocabulary, against the released code's way.

    python -m benchmarks.train_step [--out benchmarks/results/DATE-train-step.md]
    python -m benchmarks.train_step --device cuda --seq-len 4096 8192 [--compile] [--activation-checkpointing selective]

Both sides (`benchmarks.contestants`) train on the same samples (`benchmarks.mixture`) with the same noise from the same
weights, each in a process of its own; their first losses must agree. On CPU the model is small (hidden 256, 4 layers,
tied embeddings, fp32), on CUDA it has the shape of Qwen2.5-1.5B (tied; weights, gradients and AdamW's state in bf16);
the vocabulary has 168,072 entries in both. Figures:

- useful tokens/s: tokens that are not padding, over the median time of a step; `speedup` is the ratio of the two.
- peak memory: largest resident set of the process on CPU, torch.cuda.max_memory_allocated on CUDA; `memory_ratio` is
  ours over the baseline's. The baseline's micro-batch is one row on CPU, the least it can take; on CUDA as many rows as
  one of our micro-batches has samples, halved as often as it runs out of memory.
- MFU: useful work (`ttt_dist.training.flops`, the same for both sides) over time and peak FLOP/s. Peak: the data sheet's
  dense bf16 figure of known GPUs, else the best of some large matrix products in the same run.
- parts (always on CUDA, --parts on CPU): attention of all layers and the loss, each alone on random input, in
  milliseconds per 1,000 useful tokens; and how far attention is from fp32 attention under the dense mask.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks.contestants import Baseline, Ours, setting
from benchmarks.measure import measure, peak_flops
from benchmarks.mixture import LONGEST, draw_samples
from benchmarks.result_file import head, result_path
from ttt_dist.config.objective import Objective
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import released
from ttt_dist.training.flops import ModelFlops
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

LAYOUT = released()
SEED = 0
LOSS_TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}  # relative; the baseline's cross-entropy is bf16 on CUDA


def parse_arguments() -> argparse.Namespace:
    """The command line, with the defaults of the device. Raises UserError for what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--samples", type=int, help="samples of a step (default: 10 on cpu, 200 on cuda)")
    parser.add_argument(
        "--steps", type=int, help="measured steps (default: on cpu 2 of ours, 1 of the baseline; else 5)"
    )
    parser.add_argument("--seq-len", type=int, nargs="+", help="pack lengths (default: 2048 on cpu, 4096 8192 on cuda)")
    parser.add_argument("--micro-batch", type=int, default=1, help="packs of one of our micro-batches")
    parser.add_argument("--baseline-micro-batch", type=int, help="rows of one of the baseline's micro-batches")
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    parser.add_argument("--activation-checkpointing", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--parts", action="store_true", help="time attention and loss apart on cpu too")
    parser.add_argument("--out", type=result_path, help="write a dated result file")
    parser.add_argument("--side", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    args.samples = args.samples or (10 if on_cpu else 200)
    args.seq_len = args.seq_len or ([2048] if on_cpu else [4096, 8192])
    args.parts |= not on_cpu
    if not on_cpu and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; take --device cpu")
    if min(args.seq_len) < LONGEST:
        raise UserError(f"--seq-len {min(args.seq_len)}: the longest samples have {LONGEST} tokens")
    return args


def main() -> None:
    """Measure both sides, each in its own process, and say how they compare."""
    args = parse_arguments()
    samples = draw_samples(LAYOUT, args.samples, SEED)
    if args.side:
        print_json(run_side(args, samples))
        return
    work, (peak, peak_from) = useful_flops(samples, args.device), peak_flops(args.device)
    print_rank0(
        f"{args.samples} samples, useful work of a step {work / 1e12:.3f} TFLOP, peak {peak / 1e12:.3g} TFLOP/s ({peak_from})"
    )
    baseline = figures_of(start_side("baseline", args.seq_len[0]), work, peak)
    print_rank0(line("baseline", baseline))
    ours = {}
    for seq_len in args.seq_len:
        ours[seq_len] = figures_of(start_side("ours", seq_len), work, peak)
        print_rank0(line(f"ours, packs of {seq_len}", ours[seq_len]))
        check_losses(ours[seq_len]["loss"], baseline["loss"], LOSS_TOLERANCE[args.device])
    summary = compare(ours, baseline)
    if args.out:
        write_result(args, ours, baseline, summary, f"{peak / 1e12:.3g} TFLOP/s ({peak_from})")
        print_rank0(f"wrote {args.out}")
    print_json(summary)


def run_side(args: argparse.Namespace, samples: list[Sample]) -> dict[str, Any]:
    """Measure one side in this process."""
    torch.manual_seed(SEED)
    on_cpu, (seq_len,) = args.device == "cpu", args.seq_len
    if args.side == "ours":
        ours = Ours(LAYOUT, args.device, seq_len, args.activation_checkpointing, args.compile)
        size, steps = args.micro_batch, args.steps or (2 if on_cpu else 5)
        return measure("ours", ours, samples, size, steps, args.device, args.parts)
    rows = 1 if on_cpu else round(args.micro_batch * seq_len / statistics.mean(map(len, samples)))
    size, steps = args.baseline_micro_batch or rows, args.steps or (1 if on_cpu else 5)
    return measure("baseline", Baseline(LAYOUT, args.device), samples, size, steps, args.device, args.parts)


def start_side(side: str, seq_len: int) -> dict[str, Any]:
    """Measure one side in a process of its own, with this command's arguments."""
    command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--side", side, "--seq-len", str(seq_len)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{side} at --seq-len {seq_len} ended with exit status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def useful_flops(samples: list[Sample], device: str) -> float:
    """Useful work of a step in FLOP, forward and backward."""
    batch = collate(
        [[sample] for sample in samples], LAYOUT, Objective(preset="paper"), SEED, [0] * len(samples), LONGEST
    )
    flops = ModelFlops.of(setting(device)[0], LAYOUT.vocab_size)
    return flops.useful(batch.useful_tokens, batch.ar_tokens + batch.nar_tokens, batch.visible_pairs)


def figures_of(measured: dict[str, Any], work: float, peak: float) -> dict[str, Any]:
    """What was measured, with rates."""
    seconds = statistics.median(measured["seconds"])
    rates = {
        "step_s": seconds,
        "useful_tokens_per_s": measured["useful_tokens"] / seconds,
        "mfu": work / seconds / peak,
    }
    return measured | rates


def check_losses(ours: float, baseline: float, tolerance: float) -> None:
    """Speed is worth nothing if it is that of another loss."""
    if not abs(ours - baseline) <= tolerance * abs(baseline):
        raise UserError(f"the sides differ in their first loss: {ours} and {baseline}; one of them is wrong")


def compare(ours: dict[int, dict[str, Any]], baseline: dict[str, Any]) -> dict[str, Any]:
    """The figures of the first pack length, and all of them by pack length."""

    def against(figures: dict[str, Any]) -> dict[str, Any]:
        kept = {key: figures[key] for key in ("useful_tokens_per_s", "mfu", "memory", "useful_share", "loss")}
        ratios = {
            "speedup": figures["useful_tokens_per_s"] / baseline["useful_tokens_per_s"],
            "memory_ratio": figures["memory"] / baseline["memory"],
        }
        return ratios | kept | figures["parts"]

    rows = {seq_len: against(figures) for seq_len, figures in ours.items()}
    theirs = {
        f"baseline_{key}": value for key, value in against(baseline).items() if key not in ("speedup", "memory_ratio")
    }
    more = {"by_seq_len": rows} if len(rows) > 1 else {}
    return next(iter(rows.values())) | theirs | {"baseline_micro_batch": baseline["micro_batch"]} | more


def line(name: str, figures: dict[str, Any]) -> str:
    """A side's figures for a reader."""
    parts = "".join(f", {key} {value:.3g}" for key, value in figures["parts"].items())
    return (
        f"{name}: {figures['step_s']:.2f} s a step, {figures['useful_tokens_per_s']:,.0f} useful tokens/s, "
        f"MFU {figures['mfu']:.1%}, {figures['memory'] / 1e9:.2f} GB, useful {figures['useful_share']:.1%}, "
        f"micro-batch {figures['micro_batch']}, loss {figures['loss']:.6f}{parts}"
    )


def write_result(
    args: argparse.Namespace,
    ours: dict[int, dict[str, Any]],
    baseline: dict[str, Any],
    summary: dict[str, Any],
    peak: str,
) -> None:
    """A dated file: hardware, command, revision, tables."""
    config, dtype = setting(args.device)
    columns = {"baseline": baseline} | {f"packs of {seq_len}": figures for seq_len, figures in ours.items()}
    text = [
        *head("Training step against the released code's way", "benchmarks.train_step"),
        f"- Model: hidden {config.hidden_size}, {config.num_layers} layers, {config.num_heads} / {config.num_kv_heads} heads, "
        f"MLP {config.ffn_hidden_size}, tied embeddings, vocabulary {LAYOUT.vocab_size}, {str(dtype).removeprefix('torch.')}; "
        f"{args.samples} samples a step; peak {peak}",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    rows: dict[str, Any] = {
        "useful tokens/s": lambda f: f"{f['useful_tokens_per_s']:,.0f}",
        "speedup": lambda f: f"{f['useful_tokens_per_s'] / baseline['useful_tokens_per_s']:.2f}",
        "peak memory, GB": lambda f: f"{f['memory'] / 1e9:.2f}",
        "memory ratio": lambda f: f"{f['memory'] / baseline['memory']:.3f}",
        "MFU (useful work)": lambda f: f"{f['mfu']:.1%}",
        "seconds of each step": lambda f: ", ".join(f"{s:.2f}" for s in f["seconds"]),
        "useful share of slots": lambda f: f"{f['useful_share']:.1%}",
        "rows of a micro-batch": lambda f: f["micro_batch"],
        "first loss": lambda f: f"{f['loss']:.6f}",
    }
    if args.parts:
        rows["attention, ms per 1,000 useful tokens"] = lambda f: f"{f['parts']['attention_ms']:.2f}"
        rows["loss, ms per 1,000 useful tokens"] = lambda f: f"{f['parts']['loss_ms']:.2f}"
        rows["attention's deviation from fp32"] = lambda f: f"{f['parts']['attention_error']:.1e}"
    text += [
        f"| {name} | {' | '.join(str(cell(figures)) for figures in columns.values())} |" for name, cell in rows.items()
    ]
    text += ["", "What the figures mean: docstring of `benchmarks/train_step.py`.", "", f"`{json.dumps(summary)}`", ""]
    args.out.write_text("\n".join(text), encoding="utf8")


if __name__ == "__main__":
    run_command(main)
