"""GLM-4-Voice's tokenizer with random weights: names, features, layers, causality, batches, and what is refused."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ttt_dist.audio import describe_codec, load_codec
from ttt_dist.audio.codec import Codec
from ttt_dist.audio.codecs.glm4voice import Glm4Voice
from ttt_dist.audio.codecs.whisper_features import WhisperFeatures
from ttt_dist.audio.codecs.whisper_vq import WhisperVQ, WhisperVQConfig, block_causal_mask
from ttt_dist.util.errors import UserError

CPU = torch.device("cpu")
PUBLISHED: dict[str, Any] = {
    "activation_function": "gelu",
    "architectures": ["WhisperVQEncoder"],
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "model_type": "whisper",
    "num_mel_bins": 128,
    "pooling_kernel_size": 4,
    "pooling_position": 16,
    "pooling_type": "avg",
    "quantize_causal_block_size": 200,
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "quantize_position": 16,
    "quantize_vocab_size": 16384,
    "scale_embedding": False,
    "torch_dtype": "float32",
}
SMALL: dict[str, Any] = {
    **PUBLISHED,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_source_positions": 600,
    "num_mel_bins": 20,
    "pooling_position": 2,
    "quantize_position": 2,
    "quantize_vocab_size": 50,
}


def published_names(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The index of the published file: every weight's name and shape."""
    dim, ffn, codes = config["d_model"], config["encoder_ffn_dim"], config["quantize_vocab_size"]
    names: dict[str, tuple[int, ...]] = {
        "conv1.weight": (dim, config["num_mel_bins"], 3),
        "conv1.bias": (dim,),
        "conv2.weight": (dim, dim, 3),
        "conv2.bias": (dim,),
        "embed_positions.weight": (config["max_source_positions"], dim),
        "embed_positions2.weight": (config["max_source_positions"] // 4, dim),
        "codebook.weight": (codes, dim),
        "ema_count": (codes,),
        "ema_weight": (codes, dim),
    }
    for layer in range(config["quantize_position"]):
        for part, out, into in [("fc1", ffn, dim), ("fc2", dim, ffn)]:
            names |= {f"layers.{layer}.{part}.weight": (out, into), f"layers.{layer}.{part}.bias": (out,)}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names[f"layers.{layer}.self_attn.{part}.weight"] = (dim, dim)
            if part != "k_proj":
                names[f"layers.{layer}.self_attn.{part}.bias"] = (dim,)
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            names |= {f"layers.{layer}.{part}.{kind}": (dim,) for kind in ("weight", "bias")}
    return names


@cache
def _random_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) / (torch.Size(shape[1:]).numel() if len(shape) > 1 else 1) ** 0.5
        for name, shape in published_names(SMALL).items()
    }
    config = WhisperVQConfig.read(SMALL, Path("config.json"))
    model = WhisperVQ(config)
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()})
    with torch.no_grad():
        points = model.points(WhisperFeatures(20, CPU)([noise(192000, 5)]), torch.tensor([600]))[0]
    weights["codebook.weight"] = points[::3][:50].contiguous()
    return weights


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """All weights of SMALL. The codebook is made of what the network makes of noise, so that codes tell sounds apart."""
    return dict(_random_weights(seed))


def write_folder(folder: Path, config: dict[str, Any] = SMALL, weights: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights or random_weights(), folder / "model.safetensors")
    return folder


def noise(samples: int, seed: int = 0) -> Tensor:
    """Noise whose colour and loudness change every 50 ms."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        functional.avg_pool1d(torch.randn(1, 1, 800 + width, generator=generator), width + 1, 1)[0, 0]
        * 0.1
        * (1 + width)
        for width in torch.randint(0, 12, (samples // 800 + 1,), generator=generator).tolist()
    ]
    return torch.cat(pieces)[:samples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("glm") / "weights")


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return load_codec(f"glm4voice:{folder}")


def test_module_has_the_published_names_and_shapes() -> None:
    config = WhisperVQConfig.read(PUBLISHED, Path("config.json"))
    with torch.device("meta"):
        model = WhisperVQ(config)
    wanted = published_names(PUBLISHED)
    undecided = {"embed_positions2.weight", "ema_count", "ema_weight"}  # behind the codebook, or of its training
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: shape for name, shape in wanted.items() if name not in undecided
    }


def test_rates_and_shapes(codec: Codec) -> None:
    assert (codec.sample_rate, codec.frame_rate, codec.hop, codec.codes_per_frame) == (16000, 12.5, 1280, 1)
    assert codec.codebook_size == 50
    lengths = [0, 1, 1279, 1280, 1281, 20000]
    found = codec.encode([noise(length) for length in lengths])
    assert [len(codes) for codes in found] == [-(-length // 1280) for length in lengths]
    assert all(codes.dtype == np.int32 for codes in found)
    assert len(set(codec.encode([noise(160000)])[0].tolist())) > 10  # the weights tell sounds apart


@pytest.mark.parametrize("samples", [700, 1280, 16000, 48001])
def test_features_are_those_of_transformers(samples: int) -> None:
    wave = noise(samples)
    extractor = WhisperFeatureExtractor(feature_size=128)
    wanted = extractor(
        wave.numpy(), sampling_rate=16000, padding="longest", pad_to_multiple_of=1280, return_tensors="pt"
    ).input_features
    padded = functional.pad(wave, (0, -samples % 1280))
    found = WhisperFeatures(128, CPU)([padded, noise(80 * 1280, 1)])[:1, :, : len(padded) // 160]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_layers_are_those_of_transformers(codec: Codec, folder: Path) -> None:
    """The whole encoder once more, of transformers' layers and torch's own pieces, on one unpadded utterance."""
    assert isinstance(codec, Glm4Voice)
    weights = load_file(folder / "model.safetensors")
    keys = ("d_model", "encoder_attention_heads", "encoder_ffn_dim", "activation_function")
    config = WhisperConfig(**{key: SMALL[key] for key in keys}, attn_implementation="eager")
    features = codec.features([noise(120 * 1280)])
    x = functional.gelu(
        functional.conv1d(functional.pad(features, (2, 0)), weights["conv1.weight"], weights["conv1.bias"])
    )
    x = functional.conv1d(functional.pad(x, (2, 0)), weights["conv2.weight"], weights["conv2.bias"], stride=2)
    x = functional.gelu(x).mT + weights["embed_positions.weight"][:480]
    causal = torch.ones(480, 480).tril().bool() | torch.block_diag(*[torch.ones(n, n) for n in (200, 200, 80)]).bool()
    mask = torch.where(causal, 0.0, torch.finfo(torch.float32).min)[None, None]
    for index in range(2):
        layer = WhisperEncoderLayer(config).eval()
        prefix = f"layers.{index}."
        layer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True
        )
        x = layer(x, mask)
    wanted = nn.AvgPool1d(4)(x.mT).mT
    found = codec.model.points(features, torch.tensor([480]))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    nearest = torch.cdist(wanted[0].double(), weights["codebook.weight"].double()).argmin(dim=1)
    assert (codec.model(features, torch.tensor([480]))[0] == nearest).all()


@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_mask_shows_the_past_and_the_own_block(length: int, block: int, counts: list[int]) -> None:
    mask = block_causal_mask(torch.tensor(counts), length, block)
    for row, count in enumerate(counts):
        for q in range(length):
            for k in range(length):
                assert bool(mask[row, 0, q, k]) == (k < count and (k <= q or k // block == q // block))


@pytest.mark.parametrize("block", [1, 2])
def test_later_audio_changes_no_earlier_block(codec: Codec, block: int) -> None:
    """The features' floor is kept where it is by a click that is the loudest of both waveforms."""
    assert isinstance(codec, Glm4Voice)
    wave = noise(12 * 16000)
    wave[100] = 100.0
    other = wave.clone()
    other[block * 64000 :] = noise(len(wave) - block * 64000, 9)
    changed = _points(codec, wave) != _points(codec, other)
    assert not changed[: block * 50].any()
    assert changed[block * 50 :].any(dim=1).all()
    codes, others = codec.encode([wave, other])
    assert (codes[: block * 50] == others[: block * 50]).all()
    assert (codes[block * 50 :] != others[block * 50 :]).any()
    late = wave.clone()
    late[block * 64000 - 2000 : block * 64000] = 0.0  # within a block, though, the past sees the future
    assert (_points(codec, wave) != _points(codec, late))[(block - 1) * 50].any()


def _points(codec: Glm4Voice, wave: Tensor) -> Tensor:
    return codec.model.points(codec.features([wave]), torch.tensor([len(wave) // 320]))[0]


@settings(max_examples=15)
@given(st.lists(st.integers(1, 30000), min_size=2, max_size=5))
def test_codes_do_not_depend_on_batch_mates(codec: Codec, lengths: list[int]) -> None:
    waves = [noise(length, seed) * 10.0 ** (seed % 3) for seed, length in enumerate(lengths)]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        assert (codec.encode([wave])[0] == codes).all()


def test_padding_is_neither_heard_nor_attended_to(codec: Codec) -> None:
    assert isinstance(codec, Glm4Voice)
    short, long = noise(5 * 1280) * 1e-3, noise(60 * 1280, 1) * 50
    short[-20:] += 100.0  # loudest where the frames behind the end still look
    torch.testing.assert_close(codec.features([short, long])[:1, :, :40], codec.features([short]), atol=1e-5, rtol=1e-5)
    alone = codec.model.points(codec.features([short]), torch.tensor([20]))
    beside = codec.model.points(codec.features([short, long]), torch.tensor([20, 240]))[:1, :5]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 320, 321, 12800, 12801, 13000, 14079])
def test_positions_hold_audio_where_the_published_mask_says_so(codec: Codec, samples: int) -> None:
    assert isinstance(codec, Glm4Voice)
    seen: list[Tensor] = []
    hook = codec.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    codec.encode([noise(samples)])
    hook.remove()
    options: dict[str, Any] = {"padding": "longest", "pad_to_multiple_of": 1280, "return_attention_mask": True}
    mask = WhisperFeatureExtractor()(noise(samples).numpy(), sampling_rate=16000, **options).attention_mask
    assert [counts.tolist() for counts in seen] == [[mask[0, ::2].sum()]]


def test_batches_are_bounded(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(codec, Glm4Voice)
    monkeypatch.setattr("ttt_dist.audio.codecs.glm4voice.MAX_BATCH_SAMPLES", 50000)
    sizes: list[list[int]] = []
    encode = codec._encode_batch
    monkeypatch.setattr(codec, "_encode_batch", lambda waves: [sizes.append([len(w) for w in waves]), encode(waves)][1])
    lengths = [20000, 60000, 10000, 20000, 15000, 0, 25000]
    found = codec.encode([noise(length) for length in lengths])
    assert sizes == [[10000, 15000], [20000, 20000], [25000], [60000]]
    assert [len(codes) for codes in found] == [-(-length // 1280) for length in lengths]


def test_long_audio_is_cut_where_the_positions_end(codec: Codec) -> None:
    wave = noise(2 * 192000 + 5000)  # 600 positions are 12 s here, 1,500 are 30 s
    whole = codec.encode([wave])[0]
    assert (whole == np.concatenate(codec.encode(list(wave.split(192000))))).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_causal_convolution", False),
        ("encoder_causal_attention", True),
        ("quantize_causal_encoder", True),
        ("pooling_type", "max"),
        ("pooling_position", 1),
        ("quantize_vocab_size", None),
        ("quantize_causal_block_size", None),
        ("encoder_attention_heads", 3),
        ("activation_function", "relu"),
    ],
)
def test_settings_that_are_not_implemented_are_named(tmp_path: Path, key: str, value: object) -> None:
    write_folder(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({**SMALL, key: value}))
    with pytest.raises(UserError, match=f"config.json: .*{key}"):
        load_codec(f"glm4voice:{tmp_path / 'a'}")
    left_out = {name: kept for name, kept in SMALL.items() if name != key}
    (tmp_path / "a" / "config.json").write_text(json.dumps(left_out))
    if key in ("encoder_causal_convolution", "pooling_type"):  # what the published code takes a missing one for
        with pytest.raises(UserError, match=key):
            load_codec(f"glm4voice:{tmp_path / 'a'}")


def _drop(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")

    return damage


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _misshape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "codebook.weight": torch.zeros(49, 16)}, folder / "model.safetensors")


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()  # beside it an index would be a leftover
    places = {"conv1.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop("layers.1.fc1.bias"), r"lacks 1 of 36 weights, first layers\.1\.fc1\.bias"),
        (_misshape, r"codebook\.weight is \[49, 16\], but config\.json asks for \[50, 16\]"),
        (_truncate, r"model\.safetensors: not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: missing"),
        (_lose_shard, r"model-00001-of-00002\.safetensors: missing"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
    ],
)
def test_damaged_folders_are_told_in_one_line(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    folder = write_folder(tmp_path / "a")
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        load_codec(f"glm4voice:{folder}")
    assert "\n" not in str(caught.value)


def test_other_forms_of_the_same_weights_give_the_same_codes(codec: Codec, tmp_path: Path) -> None:
    wave = noise(30000)
    weights = random_weights()
    bare = {name: value for name, value in weights.items() if not name.startswith(("ema", "embed_positions2"))}
    prefixed = {f"model.encoder.{name}": value for name, value in weights.items()}
    decoder = {"model.decoder.layers.0.fc1.bias": torch.zeros(3), "model.encoder.layers.2.fc1.bias": torch.zeros(3)}
    for number, form in enumerate([bare, {**prefixed, **decoder}]):
        other = load_codec(f"glm4voice:{write_folder(tmp_path / str(number), weights=form)}")
        assert (other.encode([wave])[0] == codec.encode([wave])[0]).all()


def test_saved_without_its_weights(codec: Codec, folder: Path, tmp_path: Path) -> None:
    moved = write_folder(tmp_path / "weights")
    original = load_codec(f"glm4voice:{moved}")
    assert original.hash == codec.hash
    original.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["codec.json"]
    again = load_codec(tmp_path / "saved")
    assert again.info == codec.info
    assert (again.encode([noise(9000)])[0] == codec.encode([noise(9000)])[0]).all()
    save_file(random_weights(seed=1), moved / "model.safetensors")
    with pytest.raises(UserError, match=r"codec\.json: was saved of weights with hash"):
        load_codec(tmp_path / "saved")
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no longer in .*weights; put them back"):
        load_codec(f"glm4voice:{tmp_path / 'saved'}")


def test_hash_tells_settings_and_weights_apart(codec: Codec, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "a", {**SMALL, "quantize_causal_block_size": 100})
    assert load_codec(f"glm4voice:{other}").hash != codec.hash
    other = write_folder(tmp_path / "b", weights=random_weights(seed=1))
    assert load_codec(f"glm4voice:{other}").hash != codec.hash


def test_precision_can_be_chosen_and_is_told_apart(codec: Codec, folder: Path, tmp_path: Path) -> None:
    wave = noise(160000)
    chosen = {name: load_codec(f"glm4voice:{folder}", dtype=name) for name in ("float32", "bfloat16")}
    for name, other in chosen.items():
        assert isinstance(other, Glm4Voice)
        assert str(other.model.conv1.weight.dtype) == f"torch.{name}"
        assert other.model.codebook.weight.dtype == torch.float32
        assert other.describe()["dtype"] == name
        other.save(tmp_path / name)
        again = load_codec(tmp_path / name)
        assert again.info == other.info == describe_codec(tmp_path / name)
        assert again.describe()["dtype"] == name
        assert (again.encode([wave])[0] == other.encode([wave])[0]).all()
    assert len({codec.hash, *(other.hash for other in chosen.values())}) == 3
    same = [(other.encode([wave])[0] == codec.encode([wave])[0]).mean() for other in chosen.values()]
    assert same[0] == 1
    assert 0.3 < same[1] < 1  # bfloat16 is another precision, not other codes
    with pytest.raises(UserError, match=r"codec\.json: was saved with float32, not bfloat16"):
        load_codec(tmp_path / "float32", dtype="bfloat16")
    with pytest.raises(UserError, match=r"dtype float16: glm4voice runs in float32 or bfloat16"):
        load_codec(f"glm4voice:{folder}", dtype="float16")


@pytest.mark.parametrize(("dtype", "runs_in"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_precision_on_cuda(folder: Path, dtype: str | None, runs_in: torch.dtype) -> None:
    """As far as that can be seen without one: what the layers are brought to for a device of that kind."""
    model = WhisperVQ(WhisperVQConfig.read(SMALL, folder / "config.json"))
    asked: list[torch.dtype] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhisperVQ, "to_inference", lambda self, device, dtype: [asked.append(dtype), self][1])
        patch.setattr("ttt_dist.audio.codecs.glm4voice.WhisperFeatures", lambda *_: None)
        codec = Glm4Voice(model, folder, "", torch.device("cuda"), dtype)
    assert asked == [runs_in]
    assert codec.describe()["dtype"] == str(runs_in).removeprefix("torch.")


def test_speech_needs_a_decoder(codec: Codec, folder: Path) -> None:
    with pytest.raises(UserError, match="--decoder-command"):
        codec.decode(np.zeros(3, np.int32))
    with pytest.raises(UserError, match="codebooks 2: glm4voice has one"):
        load_codec(f"glm4voice:{folder}", codebooks=2)
