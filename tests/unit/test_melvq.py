"""The built-in codec: alignment, determinism, round trip, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ttt_dist.audio import load_codec
from ttt_dist.audio.codecs.kmeans import learn_centroids, nearest
from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.audio.logmel import LogMel, normalise_loudness
from ttt_dist.util.errors import UserError

SETTINGS = MelVQSettings(sample_rate=8000, codebook_size=32)


def babble(seed: int, seconds: float = 1.5, rate: int = 8000) -> Tensor:
    """Something like speech: a buzz whose two formants jump every 80 to 200 ms, at changing loudness."""
    generator = torch.Generator().manual_seed(seed)
    pieces: list[Tensor] = []
    while sum(map(len, pieces)) < seconds * rate:
        draw = torch.rand(5, generator=generator)
        t = torch.arange(int((0.08 + 0.12 * draw[0]) * rate)) / rate
        harmonics = torch.arange(1, 30)[:, None] * (90 + 80 * draw[1])
        formants = torch.stack([300 + 600 * draw[2], 900 + 1800 * draw[3]])
        gains = torch.exp(-(((harmonics - formants) / 150) ** 2)).sum(dim=1, keepdim=True)
        pieces.append((gains * torch.sin(2 * torch.pi * harmonics * t)).sum(dim=0) * (0.02 + 0.1 * draw[4]))
    wave = torch.cat(pieces)[: int(seconds * rate)]
    return wave + 1e-4 * torch.randn(len(wave), generator=generator)


@pytest.fixture(scope="module")
def codec() -> MelVQ:
    return MelVQ.learn([babble(seed) for seed in range(12)], SETTINGS)


def test_frames_lie_on_their_samples() -> None:
    logmel = LogMel(8000, 40)
    for frame in (0, 7, 19):
        wave = torch.zeros(20 * 80)
        wave[frame * 80 + 40] = 1.0  # the middle of a frame's samples
        energy = logmel(wave).sum(dim=1)
        assert energy.argmax() == frame
        if frame == 7:
            assert float(energy[6]) == pytest.approx(float(energy[8]), abs=1e-2)


@pytest.mark.parametrize(("rate", "frame_rate"), [(8000, 25.0), (16000, 25.0), (16000, 12.5), (16000, 50.0)])
def test_a_code_covers_exactly_its_hop(rate: int, frame_rate: float) -> None:
    settings = MelVQSettings(sample_rate=rate, frame_rate=frame_rate, codebook_size=8)
    codec = MelVQ.learn([babble(seed, rate=rate) for seed in range(3)], settings)
    assert codec.hop == rate / frame_rate
    for samples, count in [(1, 1), (codec.hop, 1), (codec.hop + 1, 2), (5 * codec.hop, 5)]:
        (codes,) = codec.encode([babble(3, rate=rate)[:samples]])
        assert len(codes) == count
        assert codes.dtype == np.int32
        assert len(codec.decode(codes)) == count * codec.hop


def test_a_shift_by_whole_hops_shifts_the_codes(codec: MelVQ) -> None:
    wave = babble(20)
    (codes,) = codec.encode([wave])
    (shifted,) = codec.encode([torch.cat([torch.zeros(3 * codec.hop), wave])])
    assert (shifted[4:] == codes[1:]).all()  # the first code's window sees what stands before


def test_codes_do_not_depend_on_the_batch(codec: MelVQ) -> None:
    waves = [babble(seed, seconds) for seed, seconds in [(1, 0.3), (2, 2.0), (3, 1.1), (4, 0.04)]]
    together = codec.encode(waves)
    reversed_order = codec.encode(waves[::-1])[::-1]
    for wave, codes, other in zip(waves, together, reversed_order, strict=True):
        assert (codec.encode([wave])[0] == codes).all()
        assert (codes == other).all()


def test_a_long_wave_in_pieces_is_as_in_one(codec: MelVQ) -> None:
    wave = torch.cat([babble(seed, 2.0) for seed in range(25)])  # 1,250 codes: three pieces
    normal = normalise_loudness(wave, 8000)
    at_once = nearest(codec.points(codec.stacks(normal)), codec.points(codec.codebook))
    assert (codec.encode([wave])[0] == at_once.numpy()).all()


def test_loudness_changes_no_code(codec: MelVQ) -> None:
    wave = babble(5)
    (codes,) = codec.encode([wave])
    for gain in (0.01, 0.5, 3.0):
        assert (codec.encode([gain * wave])[0] == codes).mean() > 0.97


def test_decoded_codes_encode_to_themselves(codec: MelVQ) -> None:
    for seed in range(30, 34):
        (codes,) = codec.encode([babble(seed)])
        wave = codec.decode(codes)
        assert torch.isfinite(wave).all()
        assert wave.abs().max() <= 1
        assert (codec.encode([wave])[0] == codes).mean() >= 0.9


def test_decoding_is_deterministic_and_leaves_the_generator_alone(codec: MelVQ) -> None:
    codes = np.arange(20, dtype=np.int32)
    state = torch.random.get_rng_state()
    first = codec.decode(codes)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(codec.decode(codes), first)


def test_silence_and_nothing(codec: MelVQ) -> None:
    (silent, empty) = codec.encode([torch.zeros(1000), torch.zeros(0)])
    assert len(silent) == 4
    assert len(set(silent.tolist())) == 1
    assert len(empty) == 0
    assert len(codec.decode(empty)) == 0


def test_learning_is_deterministic_and_uses_the_codebook(codec: MelVQ) -> None:
    again = MelVQ.learn([babble(seed) for seed in range(12)], SETTINGS)
    assert again.hash == codec.hash
    assert MelVQ.learn([babble(seed) for seed in range(1, 13)], SETTINGS).hash != codec.hash
    used = np.unique(np.concatenate(codec.encode([babble(seed) for seed in range(12)])))
    assert len(used) == 32


def test_saved_and_loaded_alike(codec: MelVQ, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec")
    for spec in (f"melvq:{tmp_path / 'codec'}", tmp_path / "codec"):
        loaded = load_codec(spec)
        assert loaded.hash == codec.hash
        assert loaded.codebook_size == 32
        assert loaded.frame_rate == 25
        assert (loaded.encode([babble(8)])[0] == codec.encode([babble(8)])[0]).all()


def test_damage_is_refused(codec: MelVQ, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"codec.json is missing"):
        load_codec(tmp_path)
    codec.save(tmp_path)
    with pytest.raises(UserError, match="holds codec 'melvq'"):
        load_codec(f"glm4voice:{tmp_path}")
    tensors = tmp_path / "codebook.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="hash"):
        load_codec(tmp_path)
    tensors.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_codec(tmp_path)
    tensors.write_bytes(whole)
    description = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps({**description, "loudness_weight": 1.0}))
    with pytest.raises(UserError, match="hash"):
        load_codec(tmp_path)


def test_impossible_settings_are_refused(codec: MelVQ) -> None:
    with pytest.raises(UserError, match="frame_rate 30"):
        MelVQSettings(frame_rate=30)
    with pytest.raises(UserError, match="sample_rate 11025"):
        MelVQSettings(sample_rate=11025)
    with pytest.raises(UserError, match=r"codebook_size 512.*smaller codebook"):
        MelVQ.learn([babble(0)], MelVQSettings(sample_rate=8000))
    with pytest.raises(UserError, match="code 32: outside"):
        codec.decode(np.array([0, 32], np.int32))


def test_kmeans_finds_clusters_and_fills_empty_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 4, generator=generator) * 20
    points = (centres[:, None] + 0.1 * torch.randn(6, 50, 4, generator=generator)).flatten(0, 1)
    points = torch.cat([points, points[:1].expand(300, 4)])  # duplicates: random starts will coincide
    centroids = learn_centroids(points, 40, seed=1)
    owners = nearest(points, centroids)
    assert torch.isfinite(centroids).all()
    assert (points - centroids[owners]).norm(dim=1).max() < 1
    brute = torch.cdist(points.double(), centroids.double())
    chosen = brute.gather(1, owners[:, None])[:, 0]
    torch.testing.assert_close(chosen, brute.min(dim=1).values, atol=1e-3, rtol=1e-3)


def test_kmeans_gives_rare_sounds_centroids_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    silence = 0.1 * torch.randn(1000, 8, generator=generator)
    rare = torch.randn(30, 8, generator=generator) * 10
    sounds = (rare[:, None] + 0.1 * torch.randn(30, 40, 8, generator=generator)).flatten(0, 1)
    points = torch.cat([silence, sounds])
    centroids = learn_centroids(points, 40, seed=0)
    assert (points - centroids[nearest(points, centroids)]).norm(dim=1).max() < 1
