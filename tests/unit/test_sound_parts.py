"""The parts of the built-in codec, each by what it promises: k-means, the log-mel grid, the inverse of it, flat codebooks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.audio.codecs.codebooks import flatten, unflatten
from ttt_dist.audio.codecs.kmeans import BLOCK, learn_centroids, nearest
from ttt_dist.audio.logmel import FLOOR, LOUDNESS, LogMel, normalise_loudness
from ttt_dist.audio.vocoder import inverse_mel, synthesise
from ttt_dist.util.errors import UserError

RATE = 8000


def tone(hertz: float, seconds: float = 0.5, amplitude: float = 0.3) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


def test_nearest_is_the_least_distance_across_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = (torch.randn(n, 3, generator=generator) for n in (BLOCK + 5, 7))
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(dim=1))
    assert nearest(points[:0], centroids).shape == (0,)


@given(seed=st.integers(0, 2**31), num_clusters=st.integers(1, 6))
def test_clusters_that_lie_apart_are_found(seed: int, num_clusters: int) -> None:
    """One centroid for all, or Lloyd's fixed point: every centroid is the mean of the points that are nearest to it."""
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed))
    centroids = learn_centroids(points, num_clusters, seed, iterations=200)
    owner = nearest(points, centroids)
    assert sorted(owner.unique().tolist()) == list(range(num_clusters)), "a centroid has no points"
    for number in range(num_clusters):
        torch.testing.assert_close(centroids[number], points[owner == number].mean(dim=0), atol=1e-5, rtol=0)
    assert torch.equal(centroids, learn_centroids(points, num_clusters, seed, iterations=200))


def test_a_centroid_without_points_starts_again() -> None:
    """Twenty equal points and one apart: whoever began on a copy loses all points, and one must end at the other place."""
    points = torch.tensor([5.0] * 20 + [6.0])[:, None]
    for seed in range(10):
        assert sorted(learn_centroids(points, 2, seed, iterations=100).flatten().tolist()) == [5.0, 6.0]


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 2500.0])
def test_a_tone_stands_in_the_band_of_its_frequency(hertz: float) -> None:
    logmel = LogMel(RATE, 40)
    frames = logmel(tone(hertz))
    assert frames.shape == (50, 40)
    bins = torch.linspace(0, RATE / 2, logmel.num_fft // 2 + 1)
    band = int(logmel.filters[(bins - hertz).abs().argmin()].argmax())
    assert (frames[5:-5].argmax(dim=1) - band).abs().max() <= 1


def test_a_frame_sees_its_own_samples_and_no_far_ones() -> None:
    """A click in the middle of frame 7: frame 7 hears it loudest, and no frame further away than the window."""
    logmel = LogMel(RATE, 20)
    wave = torch.zeros(20 * logmel.frame)
    wave[7 * logmel.frame + logmel.frame // 2] = 1.0
    power = logmel.power(wave).sum(dim=1)
    assert int(power.argmax()) == 7
    reach = math.ceil(len(logmel.window[logmel.window > 0]) / 2 / logmel.frame)
    assert torch.count_nonzero(power).item() <= 2 * reach + 1
    torch.testing.assert_close(power[6], power[8], rtol=0.05, atol=1e-6)
    assert torch.allclose(logmel(torch.zeros(logmel.frame)), torch.tensor(FLOOR).log())
    assert logmel(torch.zeros(0)).shape == (0, 20)


@given(factor=st.floats(1e-3, 1e3), pause=st.integers(0, 4000))
def test_loudness_depends_on_neither_gain_nor_pauses(factor: float, pause: int) -> None:
    wave = torch.cat([tone(440, amplitude=0.1), torch.zeros(pause // 80 * 80)])
    result = normalise_loudness(factor * wave, RATE)
    assert result[:4000].square().mean().sqrt().item() == pytest.approx(LOUDNESS, rel=1e-3)
    torch.testing.assert_close(result, normalise_loudness(wave, RATE), rtol=1e-3, atol=1e-5)


def test_silence_stays_silence() -> None:
    assert not normalise_loudness(torch.full((800,), 1e-7), RATE).any()
    assert len(normalise_loudness(torch.zeros(0), RATE)) == 0


def test_the_inverse_of_the_mel_filters_has_their_power() -> None:
    """What comes of a spectrum's mel power has nearly that mel power, is never negative, and needs no more than it."""
    logmel = LogMel(RATE, 40)
    wanted = logmel.power(tone(700)) @ logmel.filters
    found = inverse_mel(wanted, logmel.filters)
    assert found.min() >= 0
    error = (found @ logmel.filters - wanted).norm() / wanted.norm()
    assert error < 0.02


def test_a_synthesised_tone_has_its_frequency_and_its_length() -> None:
    logmel = LogMel(RATE, 40)
    wave = tone(1000)
    state = torch.random.get_rng_state()
    heard = synthesise(logmel(wave), logmel, stack=2)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was drawn from"
    assert heard.shape == wave.shape
    assert heard.abs().max() <= 1
    spectrum = torch.fft.rfft(heard * torch.hann_window(len(heard))).abs()
    assert abs(int(spectrum.argmax()) * RATE / len(heard) - 1000) < 60
    assert torch.equal(heard, synthesise(logmel(wave), logmel, stack=2))


@given(
    num_codebooks=st.integers(1, 8), num_frames=st.integers(0, 9), size=st.integers(1, 2000), seed=st.integers(0, 99)
)
def test_flat_codes_come_apart_again(num_codebooks: int, num_frames: int, size: int, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, size, (num_codebooks, num_frames))
    codes = flatten(frames, size)
    assert codes.dtype == np.int32
    assert codes.tolist() == [frames[k, n] + k * size for n in range(num_frames) for k in range(num_codebooks)]
    assert np.array_equal(unflatten(codes, num_codebooks, size), frames)


def test_codes_out_of_place_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In the first place a code of the second codebook; and half a frame at the end."""
    assert unflatten(np.array([14, 13, 2, 15, 3]), 2, 10).tolist() == [[4, 2], [3, 5]]
    assert "1 of 5 codes stand in another codebook's place, 1 are left over" in capsys.readouterr().err
    for wrong in (20, -1):
        with pytest.raises(UserError, match=f"code {wrong}: outside the codec's 20 codes"):
            unflatten(np.array([0, wrong]), 2, 10)
