"""The whole way in one command: recordings of words -> shards -> training -> scores, speech and an HTML report.

    python tools/pipeline.py --config recipes/demo.yaml --source demo_speech --out runs/demo
    python tools/pipeline.py --config recipes/fsdd.yaml --source .../fsdd/recordings --out runs/fsdd train.steps=1200
    python tools/pipeline.py ... --judge whisper:runs/whisper-tiny-en      (tools/make_judge.py makes that folder)

Every stage is an ordinary command of the project, printed before it runs, so that each can be repeated by hand. The
recipe's `prep` and `evaluation` sections hold their settings. The last line is one JSON object with the figures.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.commands.run import run_steps
from data_prep.recipe_steps import plan_steps
from ttt_dist.config.corpora import CorporaConfig, Flags
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.loader import load_config
from ttt_dist.config.pipeline import Recipe
from ttt_dist.evaluation import judge_registry
from ttt_dist.evaluation.judge_registry import OWN, labels, parse
from ttt_dist.inference.flags import as_flags
from ttt_dist.jobs.commands import run_python as run
from ttt_dist.launch.process_group import has_gpu
from ttt_dist.util.console import print_json, run_command
from ttt_dist.util.errors import UserError
from ttt_dist.util.shipped import find_shipped

TO_SHARDS: dict[str, Flags | str] = {"encode": {}, "compose": {}, "pack": {}}


def main() -> None:
    """Prepare, train, evaluate, report; the figures go to OUT/figures.json and the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe (YAML) with prep and evaluation sections")
    parser.add_argument("--source", required=True, type=Path, help="folder of recordings of single words")
    parser.add_argument("--out", required=True, type=Path, help="run folder; data, checkpoints and report go below it")
    parser.add_argument("--processes", type=int, help="training processes (default 2; 1 where there is one GPU)")
    add_judges(parser)
    parser.add_argument("overrides", nargs="*", help="section.key=value, as for train.py")
    args = parser.parse_args()
    judges = judges_of(args)
    config = load_config(args.config, args.overrides)
    args.source = find_shipped(args.source)
    if not args.source.is_dir():
        raise UserError(f"--source {args.source}: no such folder; name the folder that holds the recordings")

    start = time.monotonic()
    data = args.out / "data"
    prepare(config, args.source, data)
    before_training = time.monotonic()
    train(args.config, args.overrides, data, args.out, args.processes or default_processes())
    training_minutes = (time.monotonic() - before_training) / 60
    figures = evaluate(config, args.source, data, args.out, judges)
    figures |= {"train_minutes": round(training_minutes, 1), "minutes": round((time.monotonic() - start) / 60, 1)}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")
    run(["-m", "ttt_dist.tools.report", args.out, "--audio-root", args.source])
    print_json(figures | {"report": str(args.out / "report.html")})


def prepare(config: Recipe, source: Path, data: Path) -> None:
    """Recordings of single words -> manifests of strings of them -> shards; held-out recordings apart all the way."""
    prep = config.prep
    words: Flags = {"reader": "pattern", "pattern": prep.pattern, "source": str(source)}
    words |= {"holdout_every": prep.holdout_every, "holdout_field": "index"}
    length: Flags = {"min_words": prep.min_words, "max_words": prep.max_words, "gap": prep.gap, "tail": prep.tail}
    counts = {"train": prep.train_utterances, "valid": prep.valid_utterances, "test": prep.test_utterances}
    sets: dict[str, dict[str, Flags | str]] = {"words": {"manifest": words}}
    for seed, (split, count) in enumerate(counts.items(), start=config.seed):
        utterances = {"count": count, **length, "seed": seed}
        sets[split] = {"from": "words" if split == "train" else "words-heldout", "utterances": utterances}
    for split in ("train", "valid"):
        sets[split] |= TO_SHARDS
    make_sets(config, source, data, sets)


def make_shards(config: Recipe, source: Path, data: Path) -> None:
    """The manifests `train` and `valid`, which are there, -> codec, tokenizer, codes -> samples -> shards."""
    make_sets(
        config, source, data, {name: {"from": f"{data}/{name}.jsonl", **TO_SHARDS} for name in ("train", "valid")}
    )


def make_sets(config: Recipe, source: Path, data: Path, sets: dict[str, dict[str, Flags | str]]) -> None:
    """Sets with the recipe's codec, tokenizer and templates, as `data_prep run` makes them; then a look at the shards."""
    prep = config.prep
    encode: Flags = {"audio_root": str(source), "sample_rate": prep.sample_rate}
    encode |= {"frame_rate": prep.frame_rate, "codebook_size": prep.codebook_size}
    compose: Flags = {"template": prep.templates, "name_speaker": prep.name_speaker, "vocab_size": prep.text_vocab_size}
    compose |= {"text_ratio": prep.text_ratio, "audio_ratio": prep.audio_ratio}
    every = {"encode": encode, "compose": compose, "pack": {"seq_len": prep.seq_len}}
    run_steps(plan_steps(CorporaConfig(out=str(data), every=every, sets=sets)), data, run)
    for split in ("train", "valid"):
        run(["-m", "data_prep", "verify", data / "shards" / split])
    run(["-m", "data_prep", "show", data / "shards" / "train", "--tokens", 256, "--mask", data / "mask.png"])


def default_processes() -> int:
    """Training processes where the user names no number."""
    if not has_gpu():
        return 2
    import torch

    return 1 if torch.cuda.device_count() == 1 else 2


def train(recipe: str, overrides: Sequence[str], data: Path, out: Path, processes: int) -> None:
    """Training on what `prepare` left in `data`, through the DeepSpeed launcher on this machine's processes."""
    from ttt_dist.launch.rendezvous import free_port

    shards = [f"data.train={data}/shards/train", f"data.valid={data}/shards/valid", f"run_dir={out}"]
    launch = ["--num_gpus", processes, "--master_port", free_port()]  # another run may have the launcher's own
    train = ["--module", "ttt_dist.train", "--config", recipe, *shards, *overrides]
    run(["-m", "deepspeed.launcher.runner", *launch, *train])


def add_judges(parser: argparse.ArgumentParser) -> None:
    """The flag that names further judges of speech."""
    about = f"who else transcribes own speech, may be given again: {judge_registry.HELP}"
    parser.add_argument("--judge", action="append", metavar="JUDGE", default=[], help=about)


def judges_of(args: argparse.Namespace) -> list[str]:
    """The model itself, then the judges that were given. Raises UserError where one of them is none."""
    given = [judge for judge in args.judge if judge != OWN]
    for kind, place in map(parse, labels([OWN, *given]).values()):
        if kind in ("whisper", "ctc") and not Path(place).is_dir():
            raise UserError(f"--judge {kind}:{place}: no such folder; tools/make_judge.py makes one of Whisper")
    return [OWN, *given]


def evaluate(config: Recipe, source: Path, data: Path, out: Path, judges: Sequence[str]) -> dict[str, float]:
    """Scores on utterances of held-out recordings: WER of transcripts, and of generated speech transcribed again.

    Of each judge beside its ceiling; `tts_wer` is what the model hears in its own speech.
    """
    figures: dict[str, float] = {}
    for task in ("asr", "tts"):
        summary = evaluate_task(config, task, source, data, out, judges, out / "results", config.evaluation.decode)
        figures |= {"wer": summary["wer"]} if task == "asr" else own_speech(summary)
    return figures


def evaluate_task(
    config: Recipe, task: str, source: Path, data: Path, run_folder: Path, judges: Sequence[str], out: Path,
    decode: DecodeSettings, *flags: str,
) -> dict[str, Any]:  # fmt: skip
    """The summary of one task, in `out`, by the export of a run; with further flags of evaluate.py."""
    shutil.rmtree(out / "parts" / task, ignore_errors=True)  # perhaps of a model that was trained less
    limit = {"asr": config.evaluation.asr_utterances, "tts": config.evaluation.tts_utterances}[task]
    what = ["--model", run_folder / "export", "--data", data / "test.jsonl", "--audio-root", source]
    how = ["--task", task, "--limit", limit, *as_flags(decode)]
    how += ["--normaliser", config.evaluation.normaliser] if config.evaluation.normaliser else []
    how += [word for judge in judges for word in ("--judge", judge)] if task == "tts" else []
    run(["-m", "ttt_dist.evaluate", *what, "--out", out, *how, *flags])
    summary: dict[str, Any] = json.loads((out / f"{task}_summary.json").read_text(encoding="utf8"))
    return summary


def own_speech(summary: Mapping[str, Any]) -> dict[str, float]:
    """WER of own speech, of recordings, and (the ceiling) of these through the codec and back, by each judge.

    `tts_wer` is the model's own, then `tts_wer_whisper`, `recordings_whisper`, `ceiling_whisper` and so on.
    """
    figures = {"tts_wer": summary["wer"]}
    for label, judge in summary["judges"].items():
        names = {"speech": f"tts_wer_{label}", "recording": f"recordings_{label}", "codec": f"ceiling_{label}"}
        figures |= {name: judge[source]["value"] for source, name in names.items() if source in judge}
    figures.pop(f"tts_wer_{OWN}")
    return figures


def command() -> None:
    """The entry point `ttt-pipeline`."""
    run_command(main)


if __name__ == "__main__":
    command()
