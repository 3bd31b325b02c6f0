"""Codecs by packages of their own, with random weights: codes as the package gives them, alone and in batches."""

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.packages import need_package
from ttt_dist.audio import describe_codec, load_codec
from ttt_dist.audio.codecs.codebooks import unflatten
from ttt_dist.audio.codecs.packaged import PackagedCodec
from ttt_dist.audio.codecs.snac import places
from ttt_dist.audio.registry import PACKAGED
from ttt_dist.util.errors import UserError

SNAC = {
    "sampling_rate": 24000,
    "encoder_dim": 8,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 32,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
SNAC_44 = {
    **SNAC,
    "sampling_rate": 44100,
    "encoder_rates": [3, 3, 7, 7],
    "decoder_rates": [7, 7, 3, 3],
    "decoder_dim": 64,
    "attn_window_size": 32,
    "vq_strides": [8, 4, 2, 1],
}
SPEECHTOKENIZER = {
    "n_filters": 4,
    "dimension": 32,
    "semantic_dimension": 24,
    "strides": [8, 5, 4, 2],
    "lstm_layers": 2,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "activation": "ELU",
    "sample_rate": 16000,
    "n_q": 4,
    "codebook_size": 32,
}
BIGCODEC = {
    "ngf": 4,
    "use_rnn": True,
    "rnn_bidirectional": False,
    "rnn_num_layers": 1,
    "up_ratios": [2, 2, 2, 5, 5],
    "dilations": [1, 3, 9],
    "out_channels": 32,
    "codebook_size": 64,
    "vq_num_quantizers": 1,
    "codebook_dim": 4,
}
NANO: dict[str, dict[str, Any]] = {
    "encoder_config": {"down_sample_rates": [2, 3, 6, 7, 7], "encoded_dim": 16, "base_channels": 4},
    "decoder_config": {"up_sample_rates": [7, 7, 6, 3, 2], "input_dim": 16, "base_channels": 64},
}
RATES = {  # sample rate, samples per frame, codes per frame, entries of each codebook
    "bigcodec": (16000, 200, 1, 64),
    "nanocodec": (22050, 1764, 4, 4032),
    "s3tokenizer": (16000, 640, 1, 6561),
    "snac": (24000, 2048, 7, 32),
    "speechtokenizer": (16000, 320, 4, 32),
}
MODULES = {"nanocodec": "nanocodec_torch"}
NAMES = sorted(PACKAGED)
DECODERS = [name for name in NAMES if name != "s3tokenizer"]


def package(name: str) -> Any:
    """The package of a codec."""
    return need_package(MODULES.get(name, name), "codecs")


def randomise(model: nn.Module) -> nn.Module:
    """Weights large enough for sounds to differ, codebooks included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("weight.original0") or key.endswith("weight_g"):
                value.fill_(1.0)
            elif (
                value.is_floating_point()
                and value.dim() > 1
                and not key.endswith(("filter", "alpha", "positional_embedding"))
            ):
                value.copy_(torch.randn(value.shape, generator=generator) * max(value[0].numel(), 2) ** -0.5)
    return model.eval()


def nano_names(model: nn.Module) -> dict[str, Tensor]:
    """The weights as NeMo names and shapes them."""
    found = {}
    for key, value in model.state_dict().items():
        if key.endswith(".alpha"):
            key = f"{key.removesuffix('.alpha')}.activation.snake_act.alpha"
        elif "up_sample_conv_layers" in key:
            place, _, kind = key.rpartition(".")
            key, value = f"{place}.conv.{kind}", value.transpose(1, 2) if kind == "weight" else value
        found[key] = value.clone().contiguous()
    return found


CONVS = [f"encoder.conv{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
ONNX_NAMES = {  # of initializers, where the package knows a weight by that and not by its node
    "v1": {
        **{key: key.replace("encoder", "encoders") for key in CONVS},
        "encoder.positional_embedding": "encoders.positional_embedding",
    },
    "v2": {
        **{key: f"onnx::Conv_{2216 + number}" for number, key in enumerate(CONVS)},
        "quantizer._codebook.project_down.weight": "onnx::MatMul_2536",
        "quantizer._codebook.project_down.bias": "quantizer.project_in.bias",
    },
    "v3": {"quantizer._codebook.project_down.bias": "quantizer.project_in.bias"},
}
ONNX_NODES = {
    "quantizer._codebook.embed": "/quantizer/rq/model/layers.0/_codebook/Pow_1",
    "quantizer._codebook.project_down.weight": "/quantizer/MatMul",
}
NORMS = {"v1": ("Mul", "Add_1"), "v2": ("LayerNormalization",) * 2, "v3": ("Mul", "Add")}


def onnx_file(path: Path, weights: dict[str, Tensor], generation: str, stride: int = 2) -> None:
    """A graph that names its nodes and weights as CosyVoice's speech_tokenizer_v*.onnx do; it computes nothing."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes, tensors = [], []
    for key, value in weights.items():
        if generation == "v3" and key.endswith("_ln.bias"):
            continue  # zeros, which its file leaves out
        is_kept = value.dim() != 2 or "positional" in key
        name = ONNX_NAMES[generation].get(key, key.removeprefix("encoder."))
        tensors.append(numpy_helper.from_array((value if is_kept else value.t()).contiguous().numpy(), name))
        layer, _, kind = key.removeprefix("encoder.").rpartition(".")
        place = "/" + re.sub(r"\.(?=[a-z])", "/", layer).replace("/mlp.", "/mlp/mlp.")
        op = {1: "Add", 2: "MatMul", 3: "Conv"}[value.dim()]
        inputs = ["x", name]
        if layer.endswith("_ln"):
            op = NORMS[generation][kind == "bias"]
            inputs = ["x", f"{layer}.weight", f"{layer}.bias"] if generation == "v2" else inputs
        elif layer.startswith("conv"):
            op, inputs = "Conv", ["x", *(ONNX_NAMES[generation].get(one, one[8:]) for one in CONVS if layer in one)]
        extra = {"strides": [stride if layer == "conv1" else 2]} if layer.startswith("conv") else {}
        node = ONNX_NODES.get(key, f"{place}/{op}")
        nodes.append(helper.make_node(op.partition("_")[0], inputs, ["x"], name=node, **extra))
    value_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    save(helper.make_model(helper.make_graph(nodes, "g", [value_info], [value_info], tensors)), path)


def s3_model(modules: Any, generation: str) -> Any:
    sizes = {"n_audio_state": 128, "n_audio_head": 2, "n_audio_layer": 2}
    if generation == "v1":
        return modules.S3Tokenizer("speech_tokenizer_v1", modules.model.ModelConfig(**sizes, n_codebook_size=4096))
    if generation == "v2":
        return modules.S3TokenizerV2("v2", modules.model_v2.ModelConfig(**sizes))
    return modules.S3TokenizerV3("v3", modules.model_v3.ModelConfigV3(**sizes))


def write(name: str, folder: Path) -> Any:
    """A published folder with random weights, and the package's own model of it."""
    modules, config = package(name), {}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    if name.startswith("snac"):
        model, config = modules.SNAC(**SNAC), SNAC
        torch.save(randomise(model).state_dict(), folder / "pytorch_model.bin")
    elif name == "speechtokenizer":
        model, config = modules.SpeechTokenizer(SPEECHTOKENIZER), SPEECHTOKENIZER
        torch.save(randomise(model).state_dict(), folder / "SpeechTokenizer.pt")
    elif name == "bigcodec":
        model, config = modules.BigCodec(**BIGCODEC), BIGCODEC
        save_file(randomise(model).state_dict(), folder / "model.safetensors")
    elif name == "nanocodec":
        model, config = modules.AudioCodecModel(**NANO), {"sample_rate": 22050}
        save_file(nano_names(randomise(model)), folder / "model.safetensors")
    else:
        model = randomise(s3_model(modules, "v2"))
        onnx_file(folder / "speech_tokenizer_v2.onnx", model.state_dict(), "v2")
        return model
    (folder / "config.json").write_text(json.dumps(config))
    return model


def sound(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.rand(samples // 500 + 1, generator=generator).repeat_interleave(500)[:samples]
    return 0.5 * loudness * torch.randn(samples, generator=generator)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two packages build in one size, of up to 60 million weights."""
    for module, place, kind, sizes in (
        ("nanocodec_torch", "nanocodec_torch", "AudioCodecModel", NANO),
        ("bigcodec", "bigcodec.hf_model", "CodecDecoder", {"upsample_initial_channel": 64}),
    ):
        if importlib.util.find_spec(module):
            found = importlib.import_module(place)
            monkeypatch.setattr(found, kind, partial(getattr(found, kind), **sizes))


Made = Callable[[str], tuple[PackagedCodec, Any, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(codec, the package's model, folder) by name, made once."""
    known: dict[str, tuple[PackagedCodec, Any, Path]] = {}

    def make(name: str) -> tuple[PackagedCodec, Any, Path]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name) / "weights"
            model = write(name, folder)
            codec = load_codec(f"{name}:{folder}")
            assert isinstance(codec, PackagedCodec)
            known[name] = codec, model, folder
        return known[name]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_rates_and_counts(made: Made, name: str) -> None:
    codec, _, _ = made(name)
    rate, hop, k, size = RATES[name]
    assert (codec.sample_rate, codec.hop, codec.codes_per_frame, codec.codebook_size) == (rate, hop, k, k * size)
    assert codec.frame_rate == rate / hop
    lengths = [0, 1, hop, hop + 1, 9 * hop - 1]
    found = codec.encode([sound(length) for length in lengths])
    assert [len(codes) for codes in found] == [-(-length // hop) * k for length in lengths]
    assert all(codes.dtype == np.int32 for codes in found)
    described = codec.describe()
    assert json.loads(json.dumps(described)) == described
    assert described[codec.distribution][0].isdigit()


def own_codes(name: str, model: Any, wave: Tensor) -> list[list[int]]:
    """The codes [codes per frame][n] of a waveform of whole frames, by the package's own call."""
    with torch.no_grad():
        if name == "bigcodec":
            return model.encode(wave[None, None])[:, 0].tolist()
        if name == "nanocodec":
            return model.encode(wave[None, None], torch.tensor([len(wave)]))[0][0].tolist()
        if name == "speechtokenizer":
            return model.encode(wave[None, None])[:, 0].tolist()
        if name == "s3tokenizer":
            import s3tokenizer

            mels, lengths = s3tokenizer.padding([s3tokenizer.log_mel_spectrogram(wave)])
            codes, counts = model.quantize(mels, lengths)
            return [codes[0, : counts[0]].tolist()]
        one, two, four = (codes[0].tolist() for codes in model.encode(wave[None, None]))
        # The order of Orpheus-TTS.
        return [one, two[::2], four[::4], four[1::4], two[1::2], four[2::4], four[3::4]]


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_those_of_the_package(made: Made, name: str) -> None:
    codec, model, _ = made(name)
    _, hop, k, size = RATES[name]
    wave = sound(20 * hop)
    (codes,) = codec.encode([wave])
    assert unflatten(codes, k, size).tolist() == own_codes(name, model, wave)
    assert len(set(codes.tolist())) > 4  # the weights tell sounds apart


@pytest.mark.parametrize(("generation", "hop", "size"), [("v1", 320, 4096), ("v3", 640, 6561)])
def test_other_generations_of_s3(tmp_path: Path, generation: str, hop: int, size: int) -> None:
    model = randomise(s3_model(package("s3tokenizer"), generation))
    onnx_file(tmp_path / f"speech_tokenizer_{generation}.onnx", model.state_dict(), generation, stride=hop // 320)
    codec = load_codec(f"s3tokenizer:{tmp_path}")
    assert (codec.hop, codec.codebook_size) == (hop, size)
    wave = sound(20 * hop)
    (codes,) = codec.encode([wave])
    assert [codes.tolist()] == own_codes("s3tokenizer", model, wave)
    assert len(set(codes.tolist())) > 2
    with pytest.raises(UserError, match="give --decoder-command"):
        codec.decode(codes)


def test_s3_files_that_are_something_else(made: Made, tmp_path: Path) -> None:
    _, model, _ = made("s3tokenizer")
    path = tmp_path / "speech_tokenizer_v2.onnx"
    path.write_text("not ONNX")
    with pytest.raises(UserError, match=r"v2\.onnx: is no tokenizer of CosyVoice"):
        load_codec(f"s3tokenizer:{tmp_path}")
    weights = model.state_dict()
    onnx_file(path, {key: value for key, value in weights.items() if "blocks.1.attn.out" not in key}, "v2")
    with pytest.raises(UserError, match=r"lacks 2 weights of s3tokenizer, first encoder\.blocks\.1\.attn\.out\.weight"):
        load_codec(f"s3tokenizer:{tmp_path}")


@pytest.mark.parametrize("name", NAMES)
def test_codes_do_not_depend_on_batch_mates(made: Made, name: str) -> None:
    codec, _, _ = made(name)
    hop = RATES[name][1]
    waves = [sound(length, seed) for seed, length in enumerate([9 * hop, 5 * hop - 3, 7 * hop, 12 * hop + 1, 5 * hop])]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        assert (codec.encode([wave])[0] == codes).all()


@pytest.mark.parametrize("name", ["s3tokenizer", "snac"])
def test_different_lengths_share_a_forward(made: Made, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, _, _ = made(name)
    hop, sizes, frames = RATES[name][1], [], codec.frames
    monkeypatch.setattr(codec, "frames", lambda waves: [sizes.append(len(waves)), frames(waves)][1])
    codec.encode([sound(count * hop) for count in (8, 9, 10)])
    assert sizes == [3]


@pytest.mark.parametrize("name", DECODERS)
def test_speech_is_the_packages(made: Made, name: str) -> None:
    codec, model, _ = made(name)
    _, hop, k, size = RATES[name]
    wave = sound(12 * hop)
    (codes,) = codec.encode([wave])
    spoken = codec.decode(codes)
    assert spoken.shape == (12 * hop,) and spoken.dtype == torch.float32
    frames = torch.from_numpy(unflatten(codes, k, size))
    with torch.no_grad():
        if name == "snac":
            torch.manual_seed(0)  # of the noise that its decoder adds
            wanted = model.decode(model.encode(wave[None, None]))
        elif name == "speechtokenizer" or name == "bigcodec":
            wanted = model.decode(model.encode(wave[None, None]))
        else:
            wanted = model.decode(frames[None], torch.tensor([12]))[0]
    torch.testing.assert_close(spoken, wanted.flatten().clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(codec.decode(codes), spoken)
    assert len(codec.decode(codes[:0])) == 0


def test_speaking_leaves_the_random_numbers_alone(made: Made) -> None:
    codec, _, _ = made("snac")
    (codes,) = codec.encode([sound(4096)])
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    codec.decode(codes)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("strides", [(4, 2, 1), (8, 4, 2, 1), (6, 2), (1,)])
def test_a_frame_has_each_code_once_and_before_what_refines_it(strides: tuple[int, ...]) -> None:
    order = list(places(strides))
    per_book = [strides[0] // stride for stride in strides]
    assert sorted(order) == [(book, place) for book, count in enumerate(per_book) for place in range(count)]
    for book, place in order[1:]:
        above = book - 1, place * strides[book] // strides[book - 1]
        assert order.index(above) < order.index((book, place))
    assert [place for book, place in order if book == len(strides) - 1] == list(range(per_book[-1]))


def test_snac_with_windows_of_attention(tmp_path: Path) -> None:
    """The 32 and 44 kHz models attend within 32 steps: codes are filled up to that, and cut to the speech's length."""
    snac = package("snac")
    torch.manual_seed(0)
    model = randomise(snac.SNAC(**SNAC_44))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(SNAC_44))
    codec = load_codec(f"snac:{tmp_path}")
    hop = 441 * 8
    assert (codec.hop, codec.codes_per_frame) == (hop, 15)
    waves = [sound(6 * hop + 5, 1), sound(8 * hop, 2), sound(hop, 3)]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        with torch.no_grad():
            first, *_, last = model.encode(wave[None, None])
        count = -(-len(wave) // hop)
        rows = unflatten(codes, 15, 32)
        assert rows[0].tolist() == first[0, :count].tolist()
        assert rows[[3, 4, 6, 7, 10, 11, 13, 14]].T.flatten().tolist() == last[0, : 8 * count].tolist()
        assert codec.decode(codes).shape == (count * hop,)


@pytest.mark.parametrize(("name", "most"), [("snac", 3), ("speechtokenizer", 4)])
def test_first_codebooks_alone(made: Made, tmp_path: Path, name: str, most: int) -> None:
    codec, _, folder = made(name)
    fewer = load_codec(f"{name}:{folder}", codebooks=2)
    k = {"snac": 3, "speechtokenizer": 2}[name]
    assert fewer.codes_per_frame == k and fewer.hash != codec.hash
    size, hop = RATES[name][3], RATES[name][1]
    wave = sound(6 * hop)
    rows = unflatten(codec.encode([wave])[0], codec.codes_per_frame, size)
    kept = [0, 1, 4] if name == "snac" else [0, 1]
    assert unflatten(fewer.encode([wave])[0], k, size).tolist() == rows[kept].tolist()
    assert fewer.decode(fewer.encode([wave])[0]).shape == (6 * hop,)
    fewer.save(tmp_path)
    assert load_codec(tmp_path).hash == fewer.hash == describe_codec(tmp_path).hash
    for wrong in (0, most + 1):
        with pytest.raises(UserError, match=f"codebooks {wrong}: .* has {most}; choose 1 to {most}"):
            load_codec(f"{name}:{folder}", codebooks=wrong)


@pytest.mark.parametrize("name", ["nanocodec", "bigcodec"])
def test_codebooks_that_belong_together(made: Made, name: str) -> None:
    _, _, folder = made(name)
    with pytest.raises(UserError, match=f"codebooks 3: {name} speaks with all its"):
        load_codec(f"{name}:{folder}", codebooks=3)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_told_apart(made: Made, tmp_path: Path, name: str) -> None:
    codec, _, folder = made(name)
    codec.save(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert again.hash == codec.hash == describe_codec(tmp_path / "saved").hash
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        (other / path.name).write_bytes(content + b"\n" if path.name == "config.json" else content)
    if name != "s3tokenizer":
        assert load_codec(f"{name}:{other}").hash != codec.hash


@pytest.mark.parametrize("name", ["bigcodec", "nanocodec"])
def test_missing_and_misshapen_weights_are_named(made: Made, tmp_path: Path, name: str) -> None:
    _, _, folder = made(name)
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    key = next(name for name in weights if name.endswith("bias"))
    save_file({one: value for one, value in weights.items() if one != key}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"^{tmp_path}/model\.safetensors: lacks .*{key.removesuffix('.bias')}"):
        load_codec(f"{name}:{tmp_path}")
    save_file({**weights, key: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=key.rpartition(".")[0]) as caught:
        load_codec(f"{name}:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_file_with_code_in_it_is_refused(made: Made, tmp_path: Path) -> None:
    _, _, folder = made("snac")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({"weight": partial(print, "code ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="snac cannot be read") as caught:
        load_codec(f"snac:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_folders_that_hold_something_else(made: Made, tmp_path: Path) -> None:
    _, _, folder = made("snac")
    with pytest.raises(UserError, match=r"config\.json: missing"):
        load_codec(f"snac:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(SNAC))
    with pytest.raises(UserError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        load_codec(f"snac:{tmp_path}")
    (tmp_path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-100])
    with pytest.raises(UserError, match="snac cannot be read"):
        load_codec(f"snac:{tmp_path}")
    for config, says in ({"model_type": "bert"}, ".*model_type"), ({**SNAC, "sampling_rate": "x"}, ""):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
        with pytest.raises(UserError, match=f"snac cannot be read {says}"):
            load_codec(f"snac:{tmp_path}")


def test_a_package_that_is_not_installed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    _, _, folder = made("snac")
    monkeypatch.setitem(sys.modules, "snac", None)
    with pytest.raises(
        UserError, match=r"codec snac: module snac is not installed; .*pip install 'ttt-dist\[codecs\]'"
    ):
        load_codec(f"snac:{folder}")
