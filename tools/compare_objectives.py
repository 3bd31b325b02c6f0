"""Compare objectives: TtT, the paper's, its two baselines, TtT with and without strategies; same data, steps and size, over seeds.

    python tools/compare_objectives.py --config recipes/compare.yaml --source RECORDINGS --out runs/compare --seeds 3
    python tools/compare_objectives.py --config recipes/compare.yaml --source RECORDINGS --out runs/ar --only ttt,ar train.steps=300
    python tools/compare_objectives.py ... --judge whisper:runs/whisper-tiny-en        (tools/make_judge.py makes that folder)

Prepares the data once, then trains and scores one run after the other, seed by seed, as tools/pipeline.py does. Started
again with the same --out, it goes on where it was interrupted. OUT/comparison.json, .md and .html hold mean and spread
over the seeds, and are renewed after each run. The last line is one JSON object with the figures.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ttt_dist.config.loader import load_config, to_dict
from ttt_dist.config.pipeline import Recipe
from ttt_dist.evaluation import report
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.telemetry import curves
from ttt_dist.telemetry.json_lines import read_metrics
from ttt_dist.telemetry.run_folder import environment
from ttt_dist.tools import decoding_sweep, pipeline
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

Figures = dict[str, Any]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    title: str
    overrides: tuple[str, ...]
    """What its runs change in the recipe."""
    paper: tuple[float, float] | None
    """WER in per cent of the paper's 3B model on AISHELL-2 and AISHELL-1 (arXiv 2509.20072, ablations), where it has one."""
    untaught: tuple[str, ...] = ()
    """What they change besides where they do not learn the recipe's way to write audio."""


# Of models that have one way to write audio, whatever way the recipe's own decodes in.
ONE_WAY = "evaluation.decode.audio_mode=diffusion"
# One stage, and the paper's probabilities, means and weights, whatever the recipe has of its own.
OF_THE_PAPER = (
    "objective.stages=[]",
    "objective.p_mix=0.3",
    "objective.p_prefix=0.3",
    "objective.p_trunc=0.5",
    "objective.p_draft=0",
    "objective.normalisation=sample",
    "objective.ar_weight=1",
    "objective.nar_weight=1",
    "objective.noise_schedule=linear",
    "objective.z_loss=0",
    ONE_WAY,
)
VARIANTS = {
    "ttt": Variant("TtT", (), (12.53, 13.65)),
    "paper": Variant(
        "TtT of the paper",
        (*OF_THE_PAPER, "objective.preset=paper", "objective.masking=null", "objective.audio_ar=null"),
        (12.53, 13.65),
    ),
    "ar": Variant("AR baseline", (*OF_THE_PAPER, "objective.kind=ar"), (54.94, 72.01)),
    # The response is one span: a block has to hold an ordinary one whole, and a forward still commits one token.
    "nar": Variant(
        "NAR baseline",
        (*OF_THE_PAPER, "objective.kind=nar", "evaluation.decode.block=40", "evaluation.decode.steps=40"),
        (212.27, 160.58),
    ),
    "no_banom": Variant("TtT without BANOM", ("objective.p_mix=0",), (18.58, 21.35), untaught=(ONE_WAY,)),
    "no_ppm": Variant("TtT without PPM", ("objective.p_prefix=0",), (15.63, 18.83)),
    "sst": Variant("TtT with SST", ("objective.p_trunc=0.5",), None),
}
SCORES_NOTE = (
    "Mean over the seeds and standard deviation; on the right the paper's ablation with 3B models and real tasks, as "
    "context: it differs in data, size and languages. Recordings and texts are held out."
)
CEILING_NOTE = (
    " In brackets what the same ears hear in recordings and in these through the codec and back, which is the ceiling. "
    "A model understands its own speech better than others do."
)
SWEEP_NOTE = (
    "Own speech by what it costs: forward passes that spans took, per second of the sound that came of them. Denoised at so "
    "many forwards a block, written left to right, or denoised and verified by the same model."
)
CURVES_NOTE = (
    "Held-out losses, mean over the seeds, each of the variant's own objective: the AR baseline counts speech codes as "
    "text, and so does TtT in samples without noise where it learns them (audio_ar); the NAR baseline counts text as masked "
    "codes. They compare along a curve, not between objectives."
)


def main() -> None:
    """Prepare, then train and score what is not finished, and compare after each run."""
    args = parse_arguments()
    base, data = load_config(args.config, args.overrides), args.out / "data"
    if not args.source.is_dir():
        raise UserError(f"--source {args.source}: no such folder; name the folder that holds the recordings")
    require_modes(args)
    once(data / "prepared.json", prep_settings(base, args.source), lambda: prepare(base, args.source, data))
    judged = {"judges": args.judge} if args.judge else {}
    found: dict[str, dict[int, Figures]] = {name: {} for name in args.only}
    for seed in range(base.seed, base.seed + args.seeds):
        for name in args.only:
            overrides = [*overrides_of(args.config, args.overrides, name), f"seed={seed}"]
            config, folder = load_config(args.config, overrides), run_folder(args.out, name, seed)
            make = partial(train_and_score, args, overrides, config, folder)
            found[name][seed] = once(folder / "figures.json", run_settings(config) | judged, make)
            if args.sweep and config.objective.kind != "nar":
                judges = pipeline.judges_of(args)
                make = partial(decoding_sweep.sweep, config, args.source, data, folder, judges)
                once(folder / decoding_sweep.RECORD, run_settings(config) | judged, make)
            write_comparison(args.out, compare(found))
    print_json({name: {key: row[key] for key in row if key != "title"} for name, row in compare(found).items()})


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe (YAML) with prep and evaluation sections")
    parser.add_argument("--source", required=True, type=Path, help="folder of recordings of single words")
    parser.add_argument("--out", required=True, type=Path, help="folder for data, runs and the comparison")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--only", help=f"some of the variants, by comma: {','.join(VARIANTS)} (default: all)")
    parser.add_argument("--processes", type=int, help="training processes (default 2; 1 where there is one GPU)")
    pipeline.add_judges(parser)
    parser.add_argument("--sweep", action="store_true", help="own speech at several numbers of forwards as well")
    parser.add_argument("overrides", nargs="*", help="section.key=value for all runs, as for train.py")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else list(VARIANTS)
    unknown = [name for name in args.only if name not in VARIANTS]
    if unknown:
        parser.error(f"--only {unknown[0]}: no such variant; choose from {', '.join(VARIANTS)}")
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {args.seeds}")
    args.processes = args.processes or pipeline.default_processes()
    pipeline.judges_of(args)
    return args


def require_modes(args: argparse.Namespace) -> None:
    """Raise UserError where a variant will not learn to write audio as the recipe decodes it: before hours of others."""
    for name in args.only:
        config = load_config(args.config, overrides_of(args.config, args.overrides, name))
        if config.train.tokens:
            raise UserError(
                f"train.tokens={config.train.tokens}: variants are compared after as many steps; set train.steps, and train.tokens=0"
            )
        last = config.objective.at(config.train.steps - 1)
        try:
            config.evaluation.decode.require_mode(last.kind, last.learns_audio_ar)
        except UserError as error:
            raise UserError(f"variant {name}: {error}; or leave it out of --only") from None


def overrides_of(recipe: str, given: Sequence[str], name: str) -> list[str]:
    """What the runs of a variant change in a recipe, after what is given for all of them."""
    overrides = [*given, *VARIANTS[name].overrides]
    config = load_config(recipe, overrides)
    is_taught = config.objective.at(config.train.steps - 1).learns_audio_ar
    return (
        overrides
        if is_taught or config.evaluation.decode.audio_mode == "diffusion"
        else [*overrides, *VARIANTS[name].untaught]
    )


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where a run lies."""
    return out / "runs" / f"{name}-{seed}"


def prep_settings(config: Recipe, source: Path) -> Settings:
    """What decides the data."""
    return {"source": str(source.resolve()), **flat(to_dict(config), ("seed", "prep"))}


def run_settings(config: Recipe) -> Settings:
    """What decides a run's figures besides the data."""
    return flat(to_dict(config), ("seed", "model", "objective", "train", "evaluation"))


def flat(values: Mapping[str, Any], chosen: Iterable[str]) -> Settings:
    """`section.key` -> value of the chosen settings and all below them."""
    pairs: Settings = {}
    for name in chosen:
        if isinstance(values[name], dict):
            pairs |= {f"{name}.{key}": value for key, value in flat(values[name], values[name]).items()}
        else:
            pairs[name] = values[name]
    return pairs


def once(record: Path, settings: Settings, make: Callable[[], Figures]) -> Figures:
    """What `make` gives, or gave when it was first finished: `record` keeps that, and from the start on the settings.

    Raises UserError where the record is of other settings.
    """
    kept = json.loads(record.read_text(encoding="utf8")) if record.is_file() else {"settings": settings}
    for key in settings | kept["settings"]:
        then, now = kept["settings"].get(key), settings.get(key)
        if then != now:
            raise UserError(
                f"{record}: begun with {key}={then}, now {now}; take another --out, or remove {record.parent}"
            )
    if "figures" not in kept:
        _write_json(record, kept)
        kept["figures"] = make()
        _write_json(record, kept)
    return kept["figures"]


def prepare(config: Recipe, source: Path, data: Path) -> Figures:
    """The data of all runs."""
    pipeline.prepare(config, source, data)
    return {}


def train_and_score(args: argparse.Namespace, overrides: Sequence[str], config: Recipe, folder: Path) -> Figures:
    """One run: word error rates of its transcripts and of its own speech, and minutes that training took."""
    data, start = args.out / "data", time.monotonic()
    pipeline.train(args.config, overrides, data, folder, args.processes)
    minutes = round((time.monotonic() - start) / 60, 1)
    return pipeline.evaluate(config, args.source, data, folder, pipeline.judges_of(args)) | {"train_minutes": minutes}


def compare(found: Mapping[str, Mapping[int, Figures]]) -> dict[str, Figures]:
    """A row for each variant that has runs: of each score the mean, the standard deviation and the values by seed."""
    rows = {}
    for name, by_seed in found.items():
        if by_seed:
            row: Figures = {"title": VARIANTS[name].title, "seeds": list(by_seed)}
            for key in scores_of(by_seed.values()):
                values = [figures[key] for figures in by_seed.values()]
                spread = statistics.stdev(values) if len(values) > 1 else None
                row |= {key: statistics.mean(values), f"{key}_sd": spread, f"{key}_by_seed": values}
            rows[name] = row
    return rows


def scores_of(runs: Iterable[Figures]) -> list[str]:
    """The error rates that all runs have: of transcripts, and by each judge of own speech, recordings and the ceiling."""
    first, *others = runs
    kinds = ("wer", "tts_wer", "recordings_", "ceiling_")
    return [key for key in first if key.startswith(kinds) and all(key in figures for figures in others)]


def ears(rows: Mapping[str, Figures]) -> dict[str, str]:
    """The label of each judge of own speech -> the figure that it gave."""
    keys = dict.fromkeys(key for row in rows.values() for key in row if f"{key}_sd" in row)
    others = {key.removeprefix("tts_wer_"): key for key in keys if key.startswith("tts_wer_")}
    return {OWN: "tts_wer", **others}


def write_comparison(out: Path, rows: Mapping[str, Figures]) -> None:
    """OUT/comparison.json, .md and .html."""
    _write_json(out / "comparison.json", rows)
    header, cells = table(rows)
    about = f"Revision {environment(world_size=1, start_step=0)['revision']}."
    note = SCORES_NOTE + CEILING_NOTE
    lines = ["# Comparison of objectives", "", about, note, "", *markdown(header, cells)]
    swept = {
        row["title"]: decoding_sweep.over_runs(run_folder(out, name, seed) for seed in row["seeds"])
        for name, row in rows.items()
    }
    swept = {title: points for title, points in swept.items() if points}
    if swept:
        lines += ["", SWEEP_NOTE, "", *markdown(*decoding_sweep.table(swept))]
        decoding_sweep.figure(swept).savefig(out / "comparison.png", dpi=150)
    with atomic_write(out / "comparison.md") as file:
        file.write("\n".join(lines) + "\n")
    sections = [report.section("Word error rates", note, report.table(header, cells))]
    if swept:
        header, cells = decoding_sweep.table(swept)
        picture = report.svg(decoding_sweep.figure(swept))
        sections.append(report.section("Own speech by forwards", SWEEP_NOTE, picture + report.table(header, cells)))
    figure = curves.compared({row["title"]: mean_records(out, name, row["seeds"]) for name, row in rows.items()})
    if figure is not None:
        sections.append(report.section("Learning curves", CURVES_NOTE, report.svg(figure)))
    with atomic_write(out / "comparison.html") as file:
        file.write(report.page("Comparison of objectives", about, sections))
    print_rank0(f"{out / 'comparison.md'}: " + "; ".join(f"{row[0]} {row[2]} / {row[3]}" for row in cells))


def table(rows: Mapping[str, Figures]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text."""
    judges = ears(rows)
    heard = [f"own speech by {'the model itself' if label == OWN else label}, WER %" for label in judges]
    header = ["objective", "seeds", "speech to text, WER %", *heard, "paper, AISHELL-2", "paper, AISHELL-1"]
    cells = []
    for name, row in rows.items():
        scores = [rate(row, "wer"), *(beside_ceiling(row, label, key) for label, key in judges.items())]
        papers = [f"{wer:.2f}" for wer in VARIANTS[name].paper or ()] or ["", ""]
        cells.append([row["title"], str(len(row["seeds"])), *scores, *papers])
    return header, cells


def beside_ceiling(row: Figures, label: str, key: str) -> str:
    """What a judge hears in own speech, then in brackets in recordings and these through the codec, where it heard any."""
    if row.get(key) is None:
        return "none"
    ceiling = [
        f"{100 * row[name]:.1f}" for name in (f"recordings_{label}", f"ceiling_{label}") if row.get(name) is not None
    ]
    return rate(row, key) + (f" ({' / '.join(ceiling)})" if ceiling else "")


def rate(row: Figures, key: str) -> str:
    """Of a row, with its spread."""
    return with_spread(row[key], row[f"{key}_sd"])


def with_spread(mean: float, spread: float | None) -> str:
    """A rate in per cent."""
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, as lines."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def mean_records(out: Path, name: str, seeds: Iterable[int]) -> list[dict[str, float]]:
    """The held-out records of a variant's runs, averaged over the seeds at each step."""
    by_step: dict[int, list[dict[str, float]]] = {}
    for seed in seeds:
        for record in read_metrics(run_folder(out, name, seed) / "metrics.jsonl"):
            if record.get("eval_loss") is not None:
                by_step.setdefault(record["step"], []).append(record)
    keys = ("step", "eval_ar_loss", "eval_nar_loss")
    return [{key: statistics.mean(r[key] for r in records) for key in keys} for records in by_step.values()]


def _write_json(path: Path, values: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
