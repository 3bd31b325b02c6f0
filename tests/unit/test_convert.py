"""tools/convert_checkpoint.py: new rows of the vocabulary, what is refused, memory, and the command itself."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import ttt_dist.tools.convert_checkpoint as convert
from tests.distributed.cases import ROOT
from tests.distributed.small_run import execute
from tests.structures import SHARED, needs_shared
from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.config.model import ModelConfig
from ttt_dist.model.hf import published
from ttt_dist.model.hf.families import config_json, read_model_config
from ttt_dist.model.hf.folder import FolderWeights, expected_tensors
from ttt_dist.model.hf.published import export_hf, import_hf
from ttt_dist.model.hf.vocabulary import draw_rows, row_statistics
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import PIECES, TokenLayout, extend, released
from ttt_dist.tools.convert_checkpoint import shard_size
from ttt_dist.util.errors import UserError

SMALL = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24, family="qwen2")
TINY = ModelConfig(hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=4, family="qwen2")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPEECH_KEYS = ("mask_token", "audio_token_id_start")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    return train_sentencepiece(["zero one two three four five six seven eight nine"] * 5, folder, vocab_size=300)


def publish(
    folder: Path, num_rows: int, config: ModelConfig = SMALL, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Tensor]:
    """A published text model of random weights; `changes` are put into its config.json."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        for name, shape in expected_tensors(config, num_rows).items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = config_json(config, released(), num_rows, dtype)
    for key in SPEECH_KEYS:
        del values[key]
    (folder / "config.json").write_text(json.dumps(values | changes))
    return tensors


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# ---- new rows


def test_new_rows_have_mean_and_covariance_of_the_old() -> None:
    """20,000 old and new rows of known statistics, far from the origin: the deviation of each figure is known too."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    old = torch.randn(20_000, 6, generator=generator, dtype=torch.float64) @ mix + 50.0
    statistics = row_statistics(old.split(777), "here")
    new = torch.cat(list(draw_rows(statistics, 20_000, 1, "a")))
    covariance = old.T.cov()
    torch.testing.assert_close(statistics.mean, old.mean(dim=0))
    torch.testing.assert_close(statistics.root @ statistics.root, covariance)
    deviations = covariance.diagonal()
    assert ((new.mean(dim=0) - old.mean(dim=0)).abs() < 5 * (deviations / 20_000).sqrt()).all()
    spread = (covariance**2 + torch.outer(deviations, deviations)) / 20_000
    assert ((new.T.cov() - covariance).abs() < 5 * spread.sqrt()).all()


def test_draws_depend_on_seed_and_name_alone() -> None:
    statistics = row_statistics([torch.randn(50, 4, generator=torch.Generator().manual_seed(0))], "here")
    rows = {key: torch.cat(list(draw_rows(statistics, 2000, *key))) for key in ((0, "a"), (1, "a"), (0, "b"))}
    assert torch.equal(rows[0, "a"], torch.cat(list(draw_rows(statistics, 2000, 0, "a"))))
    assert not torch.equal(rows[0, "a"], rows[1, "a"])
    assert not torch.equal(rows[0, "a"], rows[0, "b"])
    assert len({tuple(row.tolist()) for row in rows[0, "a"]}) == 2000


def test_fewer_rows_than_columns_have_statistics_too() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    statistics = row_statistics([rows], "here")
    torch.testing.assert_close(statistics.root @ statistics.root, rows.double().T.cov(), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="here: rows are not finite"):
        row_statistics([torch.tensor([[1.0], [float("nan")]])], "here")
    with pytest.raises(UserError, match="fewer than two"):
        row_statistics([rows[:1]], "here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_extension_keeps_the_old_rows(tied: bool, dtype: torch.dtype, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The source's 40 rows of padding are no rows: new ones take their place, and do not count in the statistics."""
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    before = publish(tmp_path / "hf", tokenizer.size + 40, config, dtype)
    for name in {EMBEDDING, HEAD} & before.keys():
        before[name][tokenizer.size :] = 1000.0
    save_file(before, tmp_path / "hf" / "model.safetensors")
    words = tokenizer.files[0].parent
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        import_hf(tmp_path / "hf", tmp_path / name, words, codebook=3000, seed=seed, max_shard_bytes=50_000)
    one, same, other = (stored(tmp_path / name) for name in ("one", "same", "other"))
    layout = TokenLayout.load(tmp_path / "one" / "token_layout.json")
    assert layout == extend(tokenizer, 3000)
    assert one.keys() == before.keys()
    for name, tensor in before.items():
        assert same_bytes(one[name], same[name])
        if name not in (EMBEDDING, HEAD):
            assert same_bytes(one[name], tensor)
            continue
        known, new = tensor[: tokenizer.size].double(), one[name][tokenizer.size :].double()
        assert len(one[name]) == layout.vocab_size
        assert same_bytes(one[name][: tokenizer.size], tensor[: tokenizer.size])
        assert not torch.equal(one[name], other[name])
        assert (new.mean(dim=0) - known.mean(dim=0)).abs().max() < 5 * 0.1 / len(new) ** 0.5
        assert (new.T.cov() - known.T.cov()).abs().max() < 5 * 0.1**2 * (2 / len(new)) ** 0.5
    if not tied:
        assert not torch.equal(one[EMBEDDING][tokenizer.size :], one[HEAD][tokenizer.size :])


def test_padding_beyond_the_new_tokens_stays(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A published vocabulary with more padding than speech needs keeps its size, and the rest of its padding."""
    before = publish(tmp_path / "hf", tokenizer.size + 200)
    import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    layout = TokenLayout.load(tmp_path / "ours" / "token_layout.json")
    assert layout.vocab_size < tokenizer.size + 200
    export_hf(tmp_path / "ours", tmp_path / "out")
    for folder in ("ours", "out"):
        after = stored(tmp_path / folder)[EMBEDDING]
        assert len(after) == tokenizer.size + 200
        assert same_bytes(after[: tokenizer.size], before[EMBEDDING][: tokenizer.size])
        assert same_bytes(after[layout.vocab_size :], before[EMBEDDING][layout.vocab_size :])
        new = slice(tokenizer.size, layout.vocab_size)
        assert not (after[new] == before[EMBEDDING][new]).any()


def test_a_text_to_talk_model_comes_back_byte_for_byte(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """What was exported knows its speech: nothing is drawn, and another codebook is refused."""
    publish(tmp_path / "hf", tokenizer.size)
    words = tokenizer.files[0].parent
    import_hf(tmp_path / "hf", tmp_path / "ours", words, codebook=20)
    export_hf(tmp_path / "ours", tmp_path / "out")
    assert "(0 rows drawn)" in import_hf(tmp_path / "out", tmp_path / "again", codebook=20, seed=9)
    first, again = stored(tmp_path / "ours"), stored(tmp_path / "again")
    assert all(same_bytes(first[name], again[name]) for name in first)
    with pytest.raises(UserError, match=r"mask_token is \d+, but \d+ in the layout asked for"):
        import_hf(tmp_path / "out", tmp_path / "other", words, codebook=21)


@pytest.mark.slow
@needs_shared
def test_the_tokenizer_beside_the_model_is_taken_along(tmp_path: Path) -> None:
    """A real byte-level BPE: the imported folder has it, and so has the exported one, where transformers looks for it."""
    publish(tmp_path / "hf", 50257 + 47, TINY)
    for file in (SHARED / "gpt2-bpe").iterdir():
        shutil.copyfile(file, tmp_path / "hf" / file.name)
    import_hf(tmp_path / "hf", tmp_path / "ours", codebook=50)
    layout, tokenizer = TokenLayout.load(tmp_path / "ours" / "token_layout.json"), load_tokenizer(SHARED / "gpt2-bpe")
    assert (layout.tokenizer_hash, layout.num_text_tokens) == (tokenizer.hash, 50257)
    assert layout.pad == 50256  # <|endoftext|> is known already
    assert load_tokenizer(tmp_path / "ours" / "tokenizer").hash == tokenizer.hash
    export_hf(tmp_path / "ours", tmp_path / "out")
    text = "Zero, one: two?"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(text) == tokenizer.encode(text)


def test_our_padding_is_stripped(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A run's export has rows for the padding of its layout; the plain folder has none."""
    layout = extend(tokenizer, 20)
    assert layout.padded_vocab_size > layout.vocab_size
    before = publish(tmp_path / "run", layout.padded_vocab_size)
    layout.save(tmp_path / "run" / "token_layout.json")
    tokenizer.save(tmp_path / "run" / "tokenizer")
    kept = {"ttt_decoding": {"block": 13, "ends": "any"}}
    (tmp_path / "run" / "generation_config.json").write_text(json.dumps(kept))
    export_hf(tmp_path / "run", tmp_path / "out", dtype=torch.bfloat16)
    assert folder_settings(tmp_path / "out") == DecodeSettings(block=13, ends="any")
    after = stored(tmp_path / "out")
    assert same_bytes(after[EMBEDDING], before[EMBEDDING][: layout.vocab_size].bfloat16())
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["vocab_size"], values["dtype"]) == (layout.vocab_size, "bfloat16")
    assert [values[key] for key in SPEECH_KEYS] == [layout.mask, layout.first_code]
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.model").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("Zero <|audio_17|>")[-1] == layout.first_code + 17


# ---- the released vocabulary


class Qwen:
    """What the conversion asks of Qwen2.5's tokenizer."""

    name, hash, size, text_size = "Qwen2.5", "0" * 64, 151665, 151643

    def __init__(self, changes: dict[str, int] | None = None) -> None:
        ids = {PIECES[name]: token for name, token in released().special_ids.items() if token < self.size}
        self.ids = ids | (changes or {})

    def special_id(self, piece: str) -> int | None:
        return self.ids.get(piece)

    def save(self, folder: Path) -> None:
        folder.mkdir()


@pytest.mark.parametrize(("num_rows", "drawn"), [(151936, 16407), (168072, 0), (168192, 0)])
def test_released_layout(num_rows: int, drawn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5 lacks 168,072 - 151,665 rows, whatever its padding; a released checkpoint none."""
    monkeypatch.setattr(published, "load_tokenizer", lambda _: Qwen())
    before = publish(tmp_path / "hf", num_rows, TINY)
    assert f"({drawn:,} rows drawn)" in import_hf(tmp_path / "hf", tmp_path / "ours")
    after = stored(tmp_path / "ours")
    known = 168072 - drawn
    assert same_bytes(after[EMBEDDING][:known], before[EMBEDDING][:known])
    assert len(after[EMBEDDING]) == max(168072, num_rows)
    assert TokenLayout.load(tmp_path / "ours" / "token_layout.json") == released("Qwen2.5", "0" * 64)
    config, layout = read_model_config(tmp_path / "ours"), released()
    rows = FolderWeights(tmp_path / "ours", config, layout)("embed.weight", (layout.padded_vocab_size, 4))
    assert torch.equal(rows[: layout.vocab_size], after[EMBEDDING][: layout.vocab_size])


def test_released_layout_needs_its_tokenizer(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "hf", 400)
    with pytest.raises(UserError, match=r"has <\|endoftext\|> as None, the released vocabulary as 151643"):
        import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent)
    monkeypatch.setattr(published, "load_tokenizer", lambda _: Qwen({"<|mask_token|>": 9}))
    with pytest.raises(UserError, match=r"has <\|mask_token\|> as 9"):
        import_hf(tmp_path / "hf", tmp_path / "ours")


# ---- refusals


def test_a_source_that_is_not_its_config_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    words, hf = tokenizer.files[0].parent, tmp_path / "hf"
    config = dataclasses.replace(SMALL, tie_embeddings=True)

    def refused(message: str, tensors: dict[str, Tensor], **changes: Any) -> None:
        shutil.rmtree(hf, ignore_errors=True)
        publish(hf, 320, config, **changes)
        save_file(tensors, hf / "model.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            import_hf(hf, tmp_path / "ours", words, codebook=20)
        assert str(hf) in str(caught.value)
        assert not list(tmp_path.glob("*ours*"))

    whole = publish(hf, 320, config)
    bias = "model.layers.0.self_attn.o_proj.bias"
    refused(f"{bias} is no part of a qwen2", whole | {bias: torch.zeros(16)})
    refused("no tensor model.norm.weight", {name: x for name, x in whole.items() if name != "model.norm.weight"})
    refused(r"model\.norm\.weight is \[8\]", whole | {"model.norm.weight": torch.zeros(8)})
    refused("norm.weight is of type I8", whole | {"model.norm.weight": torch.zeros(16, dtype=torch.int8)})
    refused("tie_word_embeddings is true, but", whole | {HEAD: torch.zeros(320, 16)})
    refused("no tensor lm_head.weight", whole, tie_word_embeddings=False)
    refused("vocab_size is 7, but", whole, vocab_size=7)
    refused("_proj.bias is no part of a llama", whole, model_type="llama", architectures=["LlamaForCausalLM"])
    refused("rope_type is 'yarn'", whole, rope_scaling={"rope_type": "yarn"})
    few = {name: x[:100].clone() if name == EMBEDDING else x for name, x in whole.items()}
    refused("has 100 rows for 300 tokens", few, vocab_size=100)
    (hf / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file"):
        import_hf(hf, tmp_path / "ours", words, codebook=20)
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is there; only safetensors are read"):
        import_hf(hf, tmp_path / "ours", words, codebook=20)


def test_a_tied_head_that_is_the_embedding_is_dropped(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    whole = publish(tmp_path / "hf", 320, dataclasses.replace(SMALL, tie_embeddings=True))
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(whole | table | {HEAD: whole[EMBEDDING].clone()}, tmp_path / "hf" / "model.safetensors")
    import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    assert stored(tmp_path / "ours").keys() == whole.keys()


def test_what_fails_midway_leaves_nothing(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "hf", 320)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenLayout, "save", full)
    with pytest.raises(UserError, match="ours: no space left"):
        import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    with pytest.raises(UserError, match="exists already"):
        import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    with pytest.raises(UserError, match="exists already"):
        export_hf(tmp_path / "ours", tmp_path / "hf")


# ---- the command, and its memory


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """tools/convert_checkpoint.py."""
    return execute([sys.executable, "tools/convert_checkpoint.py", *map(str, arguments)])


@pytest.mark.slow
def test_command_line(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    publish(tmp_path / "hf", 320)
    source = ["--source", tmp_path / "hf", "--tokenizer", tokenizer.files[0].parent, "--codebook", 20]
    done = command("import-hf", *source, "--out", tmp_path / "ours", "--max-shard-size", "0.01MB")
    assert done.returncode == 0, done.stderr
    assert "qwen2, 329 tokens (29 rows drawn), 329 rows" in done.stdout
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    done = command("import-hf", *source, "--out", tmp_path / "ours")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "exists already" in done.stderr
    done = command("export-hf", "--source", tmp_path / "ours", "--out", tmp_path / "out", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    assert "Qwen2ForCausalLM, 329 rows" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["reshard"],
        ["import-hf", "--source", "a", "--out", "b"],
        ["import-hf", "--source", "a", "--out", "b", "--codebook", "0"],
        ["import-hf", "--source", "a", "--out", "b", "--codebook", "2", "--layout", "released"],
        ["export-hf", "--source", "a", "--out", "b", "--max-shard-size", "much"],
        ["export-hf", "--source", "a", "--out", "b", "--dtype", "fp16"],
    ],
)
def test_bad_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        convert.main()
    assert caught.value.code == 2


def test_sizes() -> None:
    assert [shard_size(text) for text in ("5GB", "1.5 mb", "7KB", "12")] == [5 * 10**9, 1_500_000, 7000, 12]


MEASURE = """
import json, sys
from pathlib import Path
from ttt_dist.model.hf.published import export_hf, import_hf

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def peak(convert):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    convert()
    return status("VmHWM") - before

folder, words, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for model, place in (("small", folder / "warm"), ("large", folder)):  # what is imported on the way is no part of it
    peaks = [
        peak(lambda: import_hf(folder / model, place / "ours", words, 20, 0, size)),
        peak(lambda: export_hf(place / "ours", place / "out", None, size)),
    ]
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_below_a_shard(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Nine files of 40 MB pass through; the embedding alone fills one, and extending it must not double it."""
    config = ModelConfig(
        hidden_size=512,
        num_layers=20,
        num_heads=8,
        num_kv_heads=8,
        ffn_hidden_size=2048,
        family="qwen2",
        tie_embeddings=True,
    )
    num_rows = 20_000
    publish(tmp_path / "small", 320)
    large = tmp_path / "large"
    publish(large, num_rows, config)
    (large / "model.safetensors").unlink()
    size, shards, room = 40 * 10**6, [{}], 40 * 10**6  # type: ignore[var-annotated]
    for name, shape in expected_tensors(config, num_rows).items():
        tensor = torch.full(shape, 0.5)
        if name == EMBEDDING:
            tensor[:, 0] = torch.arange(num_rows) * 1e-4
        if tensor.nbytes > room:
            shards, room = [*shards, {}], size
        shards[-1][name], room = tensor, room - tensor.nbytes
    for number, tensors in enumerate(shards):
        save_file(tensors, large / f"model-{number}.safetensors")
    places = {name: f"model-{number}.safetensors" for number, tensors in enumerate(shards) for name in tensors}
    (large / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    del shards, tensors, tensor

    arguments = [str(tmp_path), str(tokenizer.files[0].parent), str(size)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for peak, folder in zip(json.loads(done.stdout.splitlines()[-1]), ("ours", "out"), strict=True):
        files = [path.stat().st_size for path in (tmp_path / folder).glob("*.safetensors")]
        assert len(files) >= 8
        assert peak <= 1.3 * max(files), f"{folder}: {peak / 1e6:.0f} MB for files of {max(files) / 1e6:.0f} MB"
    shutil.rmtree(tmp_path)
