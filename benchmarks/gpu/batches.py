"""Micro-batches of the benchmarks' mixture, on the device."""

from benchmarks.gpu.setting import Setting
from benchmarks.mixture import draw_samples, pack_samples
from ttt_dist.config.objective import Objective
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.sample import Sample

MEAN_LENGTH = 450  # tokens of a sample
SPARE = 8  # packs drawn beyond those taken


def draw_packs(setting: Setting, number: int, seq_len: int) -> list[list[Sample]]:
    """The fullest packs of a set: a long run's are 98 % full."""
    samples = draw_samples(setting.layout, (number + SPARE) * seq_len // MEAN_LENGTH, seed=0)
    return sorted(pack_samples(samples, seq_len, seed=0), key=lambda pack: -sum(map(len, pack)))[:number]


def draw_batches(setting: Setting, number: int, rows: int, seq_len: int) -> list[Batch]:
    """So many micro-batches of `rows` full packs each."""
    packs, objective = draw_packs(setting, number * rows, seq_len), Objective()
    groups = [packs[start : start + rows] for start in range(0, len(packs), rows)]
    return [collate(group, setting.layout, objective, 0, [0] * rows, seq_len).to(setting.device) for group in groups]
