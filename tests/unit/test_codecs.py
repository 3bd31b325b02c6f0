"""Codecs behind one interface: those of transformers with random weights, several codebooks, decoding by a command."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_prep.assets import copy_assets
from tests.structures import tiny_layout
from tests.tiny_codecs import (
    RATES,
    TINY,
    model_class,
    sound,
    tiny_model,
)
from ttt_dist.audio import CodecInfo, describe_codec, load_codec, resample
from ttt_dist.audio.codecs.codebooks import flatten, unflatten
from ttt_dist.audio.codecs.external import ExternalDecoder
from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.audio.codecs.transformers import Pretrained
from ttt_dist.audio.codecs.transformers_kinds import KINDS
from ttt_dist.data.metadata import asset_checksums, codec_hash
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.data.verify import verify_assets
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.util.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    for name in TINY:
        tiny_model(name).save_pretrained(root / name)
    return {name: root / name for name in TINY}


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path]) -> dict[str, Pretrained]:
    loaded = {name: load_codec(f"{name}:{folder}") for name, folder in folders.items()}
    return {name: codec for name, codec in loaded.items() if isinstance(codec, Pretrained)}


@pytest.mark.parametrize("name", KINDS)
def test_rates_and_counts(codecs: dict[str, Pretrained], name: str) -> None:
    codec = codecs[name]
    rate, hop, k, size = RATES[name]
    assert (codec.sample_rate, codec.hop, codec.codes_per_frame, codec.codebook_size) == (rate, hop, k, k * size)
    assert codec.frame_rate == rate / hop
    assert codec.code_rate == k * rate / hop
    lengths = [0, 1, hop, hop + 1, 30 * hop - 1]
    found = codec.encode([sound(length) for length in lengths])
    assert [len(codes) for codes in found] == [-(-length // hop) * k for length in lengths]
    assert all(codes.dtype == np.int32 for codes in found)
    described = codec.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["transformers"] == transformers.__version__
    assert described["model_type"] == codec.model.config.model_type


@pytest.mark.parametrize("name", KINDS)
def test_codes_are_those_of_transformers(codecs: dict[str, Pretrained], folders: dict[str, Path], name: str) -> None:
    rate, hop, k, size = RATES[name]
    wave = sound(40 * hop)
    (codes,) = codecs[name].encode([wave])
    model = model_class(name).from_pretrained(folders[name])
    with torch.no_grad():
        if name in ("neucodec", "xcodec2"):
            extractor = getattr(transformers, f"{TINY[name][0]}FeatureExtractor")()
            wanted = model.encode(**extractor(wave.numpy(), sampling_rate=rate, return_tensors="pt")).audio_codes
        elif name == "encodec":
            wanted = model.encode(wave[None, None], bandwidth=1.5).audio_codes[0]
        else:
            wanted = model.encode(wave[None, None]).audio_codes
    assert wanted.shape[1] == k
    assert (unflatten(codes, k, size) == wanted[0, :, :40].numpy()).all()
    assert len(set(codes.tolist())) > 4  # the weights tell sounds apart


def test_xcodec2_fills_up_the_last_frame_as_published(codecs: dict[str, Pretrained]) -> None:
    wave = sound(40 * 320 + 7)
    inputs = transformers.Xcodec2FeatureExtractor()(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        wanted = codecs["xcodec2"].model.encode(**inputs).audio_codes[0, 0]
    assert codecs["xcodec2"].encode([wave])[0].tolist() == wanted.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_codes_do_not_depend_on_batch_mates(codecs: dict[str, Pretrained], name: str) -> None:
    codec, hop = codecs[name], RATES[name][1]
    waves = [sound(length, seed) for seed, length in enumerate([9 * hop, 5 * hop - 3, 5 * hop, 31 * hop + 1, 5 * hop])]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        assert (codec.encode([wave])[0] == codes).all()


@pytest.mark.parametrize("name", KINDS)
def test_speech_comes_back_in_full_length(codecs: dict[str, Pretrained], name: str) -> None:
    codec, (_, hop, k, size) = codecs[name], RATES[name]
    (codes,) = codec.encode([sound(12 * hop)])
    wave = codec.decode(codes)
    assert wave.shape == (12 * hop,)
    assert wave.dtype == torch.float32
    assert 0 < wave.abs().max() <= 1
    assert torch.equal(codec.decode(codes), wave)
    assert len(codec.decode(codes[:0])) == 0
    codes[::k] = (codes[::k] + 1) % size
    assert not torch.equal(codec.decode(codes), wave)
    wave *= 2  # an ordinary tensor, which may be changed


def test_neucodec_speaks_at_the_rate_it_hears(codecs: dict[str, Pretrained]) -> None:
    """Its decoder gives 24 kHz; half a second of codes must stay half a second."""
    codec = codecs["neucodec"]
    (codes,) = codec.encode([sound(8000)])
    with torch.no_grad():
        spoken = codec.model.decode(audio_codes=torch.from_numpy(codes.astype(np.int64))[None, None]).audio_values
    assert spoken.numel() == 12000
    torch.testing.assert_close(codec.decode(codes), resample(spoken.flatten(), 24000, 16000).clamp(-1, 1))


def test_batches_are_bounded(codecs: dict[str, Pretrained], monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sizes = codecs["dac"], []
    encode = codec.model.encode
    monkeypatch.setattr("ttt_dist.audio.codecs.transformers.MAX_BATCH_SAMPLES", 1000)
    monkeypatch.setattr(
        codec.model,
        "encode",
        lambda input_values, **k: [sizes.append(input_values.shape), encode(input_values, **k)][1],
    )
    codec.encode([sound(n) for n in (400, 390, 80, 361, 79, 2000)])
    assert [(shape[0], shape[2]) for shape in sizes] == [(2, 80), (2, 400), (1, 400), (1, 2000)]


def test_long_speech_is_cut(codecs: dict[str, Pretrained], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt_dist.audio.codecs.transformers.PIECE_S", 1)
    codec = codecs["encodec"]
    wave = sound(20010)
    whole = codec.encode([wave])[0]
    assert (whole == np.concatenate(codec.encode(list(wave.split(8000))))).all()


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 6), st.integers(0, 10**6))
def test_codebooks_in_a_row_and_back(k: int, size: int, num_frames: int, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, size, (k, num_frames))
    codes = flatten(frames, size)
    assert codes.shape == (k * num_frames,)
    for index, code in enumerate(codes.tolist()):
        assert code == frames[index % k, index // k] + (index % k) * size
    assert (unflatten(codes, k, size) == frames).all()


def test_what_a_model_misplaces_is_told_and_read_by_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert unflatten(np.array([3, 14, 12, 5, 1], np.int32), 2, 10).tolist() == [[3, 2], [4, 5]]
    assert "2 of 5 codes stand in another codebook's place, 1 are left over" in capsys.readouterr().err
    with pytest.raises(UserError, match="code 20: outside the codec's 20 codes"):
        unflatten(np.array([0, 20], np.int32), 2, 10)


@pytest.mark.parametrize("name", ["dac", "encodec", "mimi", "xcodec"])
def test_first_codebooks_are_chosen_and_recorded(
    codecs: dict[str, Pretrained], folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    _, hop, k, size = RATES[name]
    codec = load_codec(f"{name}:{folders[name]}", codebooks=2)
    assert (codec.codes_per_frame, codec.codebook_size) == (2, 2 * size)
    assert codec.hash != codecs[name].hash
    wave = sound(20 * hop)
    everything = unflatten(codecs[name].encode([wave])[0], k, size)
    codes = codec.encode([wave])[0]
    assert (unflatten(codes, 2, size) == everything[:2]).all()
    assert codec.decode(codes).shape == (20 * hop,)
    codec.save(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert again.info == codec.info == describe_codec(tmp_path / "saved")
    assert (again.encode([wave])[0] == codes).all()
    with pytest.raises(UserError, match="saved with 2 codebooks, not 3"):
        load_codec(tmp_path / "saved", codebooks=3)
    for wrong in (0, k + 1):
        with pytest.raises(UserError, match=f"codebooks {wrong}: .* has {k}; choose 1 to {k}"):
            load_codec(f"{name}:{folders[name]}", codebooks=wrong)


def copied(folders: dict[str, Path], name: str, place: Path, **settings: object) -> Path:
    place.mkdir()
    for path in folders[name].iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    values = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**values, **settings}))
    return place


def without(folder: Path, *names: str) -> None:
    weights = load_file(folder / "model.safetensors")
    assert set(names) <= set(weights)
    kept = {key: value for key, value in weights.items() if key not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("dac", ["quantizer.quantizers.1.codebook.weight", "quantizer.quantizers.2.codebook.weight"]),
        ("xcodec2", ["fc_encoder.weight"]),
        ("mimi", ["quantizer.acoustic_residual_vector_quantizer.layers.1.codebook.embed_sum"]),
    ],
)
def test_missing_weights_are_named(folders: dict[str, Path], tmp_path: Path, name: str, missing: list[str]) -> None:
    folder = copied(folders, name, tmp_path / "a")
    without(folder, *missing)
    with pytest.raises(UserError, match=rf"lacks {len(missing)} weights of {name}, first {missing[0]}") as caught:
        load_codec(f"{name}:{folder}")
    assert "\n" not in str(caught.value)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _misshape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["quantizer.quantizers.1.codebook.weight"] = torch.zeros(17, 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "dac cannot be read"),
        (_misshape, "dac cannot be read"),
        (_pickle, r"model\.safetensors: missing; .*only safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "mimi"}'),
            "'mimi', not 'dac'; write mimi:",
        ),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "name a folder of dac"),
    ],
)
def test_damaged_folders_are_told_in_one_line(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = copied(folders, "dac", tmp_path / "a")
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        load_codec(f"dac:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("normalize", True), ("chunk_length_s", 1.0)])
def test_codes_that_do_not_say_all_are_refused(
    folders: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    folder = copied(folders, "encodec", tmp_path / "a", **{key: value})
    with pytest.raises(UserError, match=rf"config\.json: {key} {value} is not supported"):
        load_codec(f"encodec:{folder}")


def test_specs_that_name_no_codec(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say which codec it is"):
        load_codec(folders["dac"])
    with pytest.raises(UserError, match="codec 'flac' is not known; known are bigcodec, .*melvq"):
        load_codec(f"flac:{folders['dac']}")
    with pytest.raises(UserError, match=r"codec\.json is missing"):
        load_codec(f"melvq:{tmp_path}")
    with pytest.raises(UserError, match="dtype float32: dac has one precision, float32; leave the choice out"):
        load_codec(f"dac:{folders['dac']}", dtype="float32")
    with pytest.raises(UserError, match="device abacus"):
        load_codec(f"dac:{folders['dac']}", device="abacus")
    with pytest.raises(UserError, match="no CUDA device"):
        load_codec(f"dac:{folders['dac']}", device="cuda:0")


def test_a_saved_codec_is_described_without_weights(tmp_path: Path) -> None:
    settings = MelVQSettings(sample_rate=8000, codebook_size=4)
    codec = MelVQ(settings, torch.rand(4, 4, 40), torch.zeros(40))
    codec.save(tmp_path)
    (tmp_path / "codebook.safetensors").unlink()
    assert (
        describe_codec(tmp_path)
        == CodecInfo(
            name="melvq", hash=codec.hash, sample_rate=8000, frame_rate=25.0, codes_per_frame=1, codebook_size=4
        )
        == codec.info
    )
    stored = json.loads((tmp_path / "codec.json").read_text())
    for damaged in ({**stored, "codebook_size": "many"}, {"name": "melvq"}, {**stored, "name": "lost"}, []):
        (tmp_path / "codec.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"codec\.json"):
            describe_codec(tmp_path)
    with pytest.raises(UserError, match=r"codec\.json is missing"):
        describe_codec(tmp_path / "nowhere")


def saved(folders: dict[str, Path], weights: Path, place: Path, codebooks: int | None = None) -> Path:
    """A folder with a codec/ of dac, whose weights lie in `weights`."""
    if not weights.exists():
        copied(folders, "dac", weights)
    load_codec(f"dac:{weights}", codebooks).save(place / "codec")
    return place


def test_a_codec_is_the_same_wherever_its_weights_lie(folders: dict[str, Path], tmp_path: Path) -> None:
    here, there = (saved(folders, tmp_path / f"weights {name}", tmp_path / name) for name in ("here", "there"))
    descriptions = [(folder / "codec" / "codec.json").read_text() for folder in (here, there)]
    assert descriptions[0] != descriptions[1]
    assert codec_hash(here / "codec") == codec_hash(there / "codec") is not None
    copy_assets(here, tmp_path / "out")
    copy_assets(there, tmp_path / "out")
    assert (tmp_path / "out" / "codec" / "codec.json").read_text() == descriptions[0]
    other = saved(folders, folders["dac"], tmp_path / "fewer", codebooks=2)
    with pytest.raises(UserError, match="exists already and differs"):
        copy_assets(other, tmp_path / "out")


def test_shards_of_one_codec_are_mixed_wherever_its_weights_lie(folders: dict[str, Path], tmp_path: Path) -> None:
    layout = tiny_layout()
    sample = Sample.of([Segment(np.arange(3, dtype=np.int32), True)])
    shards = {}
    for name, codebooks in (("here", 3), ("there", 3), ("fewer", 2)):
        place = saved(folders, tmp_path / f"weights {name}", tmp_path / name, codebooks)
        with ShardWriter(place / "train", {"layout": layout.to_dict(), "seq_len": 8}) as writer:
            writer.add([sample])
        shards[name] = ShardReader(place / "train")
    assert shards["here"].meta["beside"] != shards["there"].meta["beside"]
    shards["here"].require_same_codec(shards["there"])
    hashes = [shards[name].prefix.parent / "codec" for name in ("here", "fewer")]
    mine, other = (str(codec_hash(folder))[:12] for folder in hashes)
    with pytest.raises(UserError, match=f"its codec has hash {mine}, that of .*fewer/train {other}"):
        shards["here"].require_same_codec(shards["fewer"])


def test_codecs_with_files_of_their_own_must_be_equal(tmp_path: Path) -> None:
    codec = MelVQ(MelVQSettings(sample_rate=8000, codebook_size=4), torch.rand(4, 4, 40), torch.zeros(40))
    codec.save(tmp_path / "a" / "codec")
    copy_assets(tmp_path / "a", tmp_path / "out")
    copy_assets(tmp_path / "a", tmp_path / "out")
    path = tmp_path / "out" / "codec" / "codebook.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert codec_hash(path.parent) == codec.hash
    with pytest.raises(UserError, match="exists already and differs"):
        copy_assets(tmp_path / "a", tmp_path / "out")


def test_every_byte_of_a_saved_codec_is_verified(folders: dict[str, Path], tmp_path: Path) -> None:
    place = saved(folders, folders["dac"], tmp_path)
    checksums, path = asset_checksums(place), place / "codec" / "codec.json"
    assert list(verify_assets(place, checksums)) == []
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        assert list(verify_assets(place, checksums)) == [
            f"{place / 'codec'}: checksum differs, its contents have changed"
        ]


DECODE = """
import json, sys, soundfile
codes = json.load(open(sys.argv[1]))
factor = float(sys.argv[3])
soundfile.write(sys.argv[2], [code / 100 for code in codes for _ in range(int(factor * 1920))], 24000)
"""


def decoder(tmp_path: Path, program: str, *arguments: str) -> ExternalDecoder:
    (tmp_path / "decode it.py").write_text(program)
    command = [sys.executable, str(tmp_path / "decode it.py"), "{codes}", "{wav}", *arguments]
    codec: Any = SimpleNamespace(
        name="x", hash="", sample_rate=16000, frame_rate=12.5, codes_per_frame=1, codebook_size=99
    )
    return ExternalDecoder(codec, shlex.join(command).replace("'{codes}'", "{codes}").replace("'{wav}'", "{wav}"))


def test_a_command_makes_the_speech(tmp_path: Path) -> None:
    codec = decoder(tmp_path, DECODE, "1.0")
    wave = codec.decode(np.array([10, 50, 30], np.int32))
    assert wave.shape == (3 * 1280,)
    for index, level in enumerate([0.1, 0.5, 0.3]):  # 24 kHz there, 16 kHz here
        assert float(wave[index * 1280 + 640]) == pytest.approx(level, abs=0.01)
    assert len(codec.decode(np.zeros(0, np.int32))) == 0


def test_decoder_command_goes_to_any_codec(folders: dict[str, Path], tmp_path: Path) -> None:
    command = decoder(tmp_path, DECODE, "0.25").command.arguments
    codec = load_codec(f"mimi:{folders['mimi']}", codebooks=1, decoder_command=shlex.join(command))
    plain = load_codec(f"mimi:{folders['mimi']}", codebooks=1)
    (codes,) = codec.encode([sound(1280)])
    assert codec.describe() == plain.describe()
    assert (codes == plain.encode([sound(1280)])[0]).all()
    assert codec.decode(codes).shape == (1280,)
    codec.save(tmp_path / "saved")
    assert "decode" not in (tmp_path / "saved" / "codec.json").read_text()


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        ("import sys; sys.exit('first\\nno model here')", [], r"ended with status 1 \(no model here\)"),
        ("import os; os._exit(3)", [], r"ended with status 3 \(without a message\)"),
        ("", [], r"wrote no \{wav\}"),
        (DECODE, ["3.0"], r"wrote 7\.20 s of speech for codes of 2\.40 s"),
        ("import sys; open(sys.argv[2], 'w').write('none')", [], "cannot be read as audio"),
    ],
)
def test_commands_that_fail(tmp_path: Path, program: str, arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        decoder(tmp_path, program, *arguments).decode(np.zeros(30, np.int32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("decode {codes}", r"lacks \{wav\}"),
        ("decode {wav}", r"lacks \{codes\}"),
        ("", r"lacks \{codes\}"),
        ("decode '{codes} {wav}", "close the quotes"),
        ("no-such-program-here {codes} {wav}", "no-such-program-here cannot be run"),
    ],
)
def test_commands_that_cannot_be(command: str, says: str) -> None:
    codec: Any = SimpleNamespace(
        name="x", hash="", sample_rate=16000, frame_rate=12.5, codes_per_frame=1, codebook_size=9
    )
    with pytest.raises(UserError, match=says):
        ExternalDecoder(codec, command).decode(np.zeros(3, np.int32))


def test_no_shell_takes_part(tmp_path: Path) -> None:
    codec = decoder(tmp_path, DECODE, "1.0", ";", "touch", str(tmp_path / "touched"))
    codec.decode(np.zeros(3, np.int32))
    assert not (tmp_path / "touched").exists()
