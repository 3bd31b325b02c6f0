"""`data_prep import`: chats and documents that are text already become parts of samples, whatever their files."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from tests.structures import SHARED, needs_shared
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.sequence.text_tokenizer import load_tokenizer, train_sentencepiece
from ttt_dist.util.errors import UserError

CHATS = [
    {"messages": [{"role": "user", "content": f"number {n}"}, {"role": "assistant", "content": "<|begin_of_audio|>"
     + "".join(f"<|audio_{(n + k) % 32}|>" for k in range(5)) + "<|end_of_audio_new|> so it is"}]}
    if n % 2 else {"text": f"a document of the number {n}"}
    for n in range(20)
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    train_sentencepiece([json.dumps(chat) for chat in CHATS] * 3, folder, 300)
    return folder


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(tokenizer: Path, out: Path, *more: str) -> None:
    main(["import", "--tokenizer", str(tokenizer), "--num-codes", "32", "--out", str(out), *more])


def samples_of(out: Path) -> list[list[int]]:
    parts = [ShardReader(path.with_suffix("")) for path in sorted(out.glob("part-*.json"))]
    return [sample.ids.tolist() for part in parts for number in range(len(part)) for sample in part[number]]


def test_every_kind_of_file_gives_the_same_samples(tokenizer: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    sources = {"lines": write_jsonl(tmp_path / "c.jsonl", CHATS)}
    (tmp_path / "c.json").write_text(json.dumps(CHATS, indent=1))
    sources["array"] = tmp_path / "c.json"
    rows = [{"messages": chat.get("messages"), "text": chat.get("text")} for chat in CHATS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    sources["table"] = tmp_path / "c.parquet"
    found = {}
    for name, source in sources.items():
        run(tokenizer, tmp_path / name, "--source", str(source), "--part-size", "7")
        found[name] = samples_of(tmp_path / name)
        main(["verify", str(tmp_path / name)])
    assert len(found["lines"]) == 20
    assert found["lines"] == found["array"] == found["table"]
    assert len(list((tmp_path / "lines").glob("part-*.json"))) == 3
    chat = ShardReader(tmp_path / "lines" / "part-00000")[1][0]
    layout = ShardReader(tmp_path / "lines" / "part-00000").layout
    assert layout.codes_of(chat.ids).tolist() == [1, 2, 3, 4, 5]
    assert chat.is_target[np.flatnonzero(layout.is_audio[chat.ids])].all()


def test_array_tasks_share_the_lines(tokenizer: Path, tmp_path: Path) -> None:
    source = ["--source", str(write_jsonl(tmp_path / "c.jsonl", CHATS)), "--part-size", "3"]
    run(tokenizer, tmp_path / "one", *source)
    for task in (2, 0, 1):
        run(tokenizer, tmp_path / "three", *source, "--task", str(task), "--tasks", "3")
    parts = sorted(path.name for path in (tmp_path / "one").glob("part-*"))
    assert parts == sorted(path.name for path in (tmp_path / "three").glob("part-*"))
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes() for name in parts)
    for folder in ("one", "three"):
        main(
            [
                "pack",
                "--samples",
                str(tmp_path / folder),
                "--seq-len",
                "64",
                "--out",
                str(tmp_path / f"s-{folder}" / "train"),
            ]
        )
        assert verify(tmp_path / f"s-{folder}" / "train") == []


def test_bad_records_are_named_and_the_rest_kept(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", CHATS[:6])
    with open(source, "ab") as file:
        file.write(
            b'{"text": "caf\xe9"}\n[1]\n{"rap": 1}\n{"text": "<|begin_of_audio|><|audio_32|><|end_of_audio_new|>"}\n'
        )
    with pytest.raises(UserError, match=r"4 bad files or lines.*other 6 samples are there"):
        run(tokenizer, tmp_path / "out", "--source", str(source))
    told = capsys.readouterr().err
    for line in range(7, 11):
        assert f"c.jsonl:{line}: " in told
    run(tokenizer, tmp_path / "out", "--source", str(source), "--max-errors", "4")
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        run(tokenizer, tmp_path / "other", "--source", str(tmp_path / "none.jsonl"))


@pytest.mark.slow
@needs_shared
def test_the_released_samples_by_the_command(tmp_path: Path) -> None:
    """Ids of codes and delimiters as the release has them, text as its tokenizer has it (here GPT-2's stands in)."""
    source = SHARED / "ttt_released_samples.jsonl"
    command = ["import", "--source", str(source), "--tokenizer", str(SHARED / "gpt2-bpe"), "--layout", "released"]
    main([*command, "--num-codes", "16384", "--out", str(tmp_path / "samples")])
    with pytest.raises(UserError, match=r"--layout released has 16,384 audio codes, the codec 32"):
        main([*command, "--num-codes", "32", "--out", str(tmp_path / "other")])
    reader = ShardReader(tmp_path / "samples" / "part-00000")
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    for number, line in enumerate(source.read_text(encoding="utf8").splitlines()):
        expected: list[int] = []
        targets: list[bool] = []
        for turn, message in enumerate(json.loads(line)["messages"]):
            header = [*tokenizer.encode("\n")] * bool(turn) + [151644, *tokenizer.encode(message["role"] + "\n")]
            body = [*by_hand(message["content"], tokenizer.encode), 151645]
            expected += header + body
            targets += [False] * len(header) + [message["role"] == "assistant"] * len(body)
        (sample,) = reader[number]
        assert sample.ids.tolist() == expected
        assert sample.is_target.tolist() == targets
    assert verify(tmp_path / "samples" / "part-00000") == []


def by_hand(content: str, encode: "object") -> list[int]:
    """The ids that docs/method.md#tokens-and-layouts gives, one piece after the other."""
    named = {"<|begin_of_audio|>": 151674, "<|end_of_audio|>": 151675, "<|begin_of_quad|>": 151676}
    named |= {"<|end_of_audio_new|>": 168070, "<|end_of_audio_span_last|>": 168071}
    ids: list[int] = []
    while content:
        text, mark, rest = content.partition("<|")
        ids += encode(text) if text else []  # type: ignore[operator]
        if not mark:
            break
        name, _, content = rest.partition("|>")
        piece = f"<|{name}|>"
        ids.append(named[piece] if piece in named else 151685 + int(name.removeprefix("audio_")))
    return ids
