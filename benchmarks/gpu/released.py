"""The released code's way on the same card: padded rows, dense masks, full logits (`benchmarks.contestants.Baseline`)."""

from collections.abc import Iterator

import torch

from benchmarks.contestants import Baseline
from benchmarks.gpu.model_steps import measure_side
from benchmarks.gpu.setting import Figures, Measurement, Setting, weights_drawn_on
from benchmarks.measure import measure_parts
from benchmarks.mixture import draw_samples

ROWS = (8, 4, 2)  # of a micro-batch, the first that fits into the memory


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Steps; parts of a step (see `benchmarks.measure.measure_parts`)."""
    with weights_drawn_on(setting.device), torch.device(setting.device):  # transformers draws its own first, there too
        baseline = Baseline(setting.layout, setting.device)
    rows = iter(ROWS if setting.on_cuda else (1,))
    num_samples = 2 * ROWS[0] if setting.on_cuda else 1

    def steps() -> Figures:
        samples = draw_samples(setting.layout, num_samples, seed=0)
        size = next(rows)
        try:
            batches = [batch.to(setting.device) for batch in baseline.batches(samples, size)]
            return measure_side(setting, "released way", baseline, batches) | {"rows": size}
        except torch.OutOfMemoryError:
            print(f"{size} rows do not fit")
        baseline.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return steps()

    def parts() -> Figures:
        batches = baseline.batches(draw_samples(setting.layout, max(num_samples // 2, 1), seed=0), 1)
        return measure_parts(baseline, [batch.to(setting.device) for batch in batches], setting.device)

    yield "steps", steps
    yield "parts", parts
