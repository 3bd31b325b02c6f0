"""Tiny corpora in the layouts that the recipes read, and the settings with which a laptop makes their shards."""

import json
from pathlib import Path

from tests.corpora import put, record

WORDS = ["the", "old", "house", "stood", "by", "a", "quiet", "river", "nobody", "knew", "who", "had", "built", "it"]
HAN = "今天天气很好我们一起去公园散步然后回家吃饭看书"
LAPTOP = [
    "corpora.codec=melvq",
    "corpora.tokenizer=null",
    "corpora.every.encode.codebook_size=8",
    "corpora.every.compose.vocab_size=300",
]


def english(number: int) -> str:
    return " ".join(WORDS[(number + step) % len(WORDS)] for step in range(3)).capitalize() + "."


def chinese(number: int) -> str:
    return HAN[number % 12 :][:5]


def make_libritts(corpus: Path, splits: dict[str, int]) -> None:
    """LibriTTS with so many utterances of each split, four to a chapter."""
    put(corpus / "SPEAKERS.txt", ";ID  |SEX| SUBSET |MINUTES| NAME", "84   | F | train-clean-100 | 8.02 | Someone")
    for split, count in splits.items():
        for number in range(count):
            name = f"84_{121 + number // 4}_{number:06d}_000000"
            wav = record(corpus / split / "84" / str(121 + number // 4) / f"{name}.wav", seconds=1.2)
            put(wav.with_suffix(".normalized.txt"), english(number))
            put(wav.with_suffix(".original.txt"), english(number))


def make_aishell1(corpus: Path) -> None:
    lines = []
    for split, count in {"train": 6, "dev": 2, "test": 2}.items():
        for number in range(count):
            name = f"BAC009S{dict(train='0002', dev='0724', test='0764')[split]}W{number:04d}"
            record(corpus / "wav" / split / name[6:11] / f"{name}.wav", seconds=1.0)
            lines.append(f"{name} {' '.join(chinese(number))}")
    put(corpus / "transcript" / "aishell_transcript_v0.8.txt", *lines)


def make_wenetspeech(corpus: Path) -> None:
    audios = []
    for name, subset, count in (("Y0000000001_abc", "M", 6), ("Y0000000002_dev", "DEV", 2)):
        path = f"audio/train/youtube/B00000/{name}.opus"
        record(corpus / path, seconds=float(count))
        segments = [
            {"sid": f"{name}_S{number:05d}", "begin_time": float(number), "end_time": number + 1.0}
            | {"text": chinese(number), "subsets": [subset], "confidence": 1.0 if number != 1 else 0.96}
            for number in range(count)
        ]
        audios.append({"aid": name, "duration": float(count), "path": path, "segments": segments})
    put(corpus / "WenetSpeech.json", json.dumps({"audios": audios}, ensure_ascii=False))


def make_chats(folder: Path) -> None:
    """Spoken chats, apart for the validation, and written ones."""
    for file, count in (("spoken", 3), ("spoken-valid", 1)):
        lines = []
        for number in range(count):
            asked, answered = (record(folder / file / f"{kind}{number}.wav", seconds=1.0) for kind in "qa")
            turns = [
                {"role": "user", "audio": str(asked.relative_to(folder))},
                {"role": "assistant", "text": english(number), "audio": str(answered.relative_to(folder))},
            ]
            lines.append(json.dumps({"id": f"{file}-{number}", "turns": turns}))
        put(folder / f"{file}.jsonl", *lines)
    chat = [{"role": "user", "content": "Who built it?"}, {"role": "assistant", "content": "Nobody knew."}]
    put(folder / "text.jsonl", *[json.dumps({"messages": chat})] * 3)


def make_corpora(home: Path, recipe: str) -> list[str]:
    """What a recipe reads, in a folder where it is started; the settings for it."""
    if recipe == "libritts":
        make_libritts(home / "LibriTTS", {"train-clean-100": 8, "dev-clean": 2, "test-clean": 1})
    elif recipe == "aishell1":
        make_aishell1(home / "data_aishell")
    elif recipe == "wenetspeech":
        make_wenetspeech(home / "WenetSpeech")
    else:
        make_libritts(home / "LibriTTS", {"train-clean-360": 8})
        make_chats(home / "chats")
    return LAPTOP
