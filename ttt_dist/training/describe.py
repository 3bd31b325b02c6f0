"""What `--dry-run` says without building anything: sizes of the model, what of the data is read when."""

from collections import Counter

from ttt_dist.data.loader import PackLoader
from ttt_dist.model.layers import NoWeights, PlainFactory
from ttt_dist.model.transformer import Transformer
from ttt_dist.model_config import ModelConfig
from ttt_dist.sequence.tokens import TokenLayout


def count_parameters(config: ModelConfig, layout: TokenLayout) -> dict[str, int]:
    """Parameters of the model by part (embed, blocks, norm, head); a tied head counts with the embedding."""
    model = Transformer.for_layout(config, layout, PlainFactory(NoWeights()))
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] += parameter.numel()
    return dict(parts)


def describe_data(loader: PackLoader, steps: int) -> list[str]:
    """A line for each source (packs, samples, tokens, epochs after `steps`), and of a blend one for each stage."""
    epochs = loader.epoch_of(steps)
    lines = []
    for name, reader in loader.sources.readers.items():
        counts = reader.meta["counts"]
        of_blend = f"{name}: " if loader.sources.stages else ""
        lines.append(
            f"{of_blend}{reader.prefix}: {counts['packs']:,} packs of {reader.seq_len:,} tokens, {counts['samples']:,} samples, "
            f"{counts['tokens']:,} tokens; {steps:,} steps are {epochs[name]:.1f} epochs"
        )
    asked = loader.sources.epoch_steps(loader.global_batch)
    if asked is not None:
        lines.append(f"the epochs of data.blend are {asked:,} steps; train.steps={steps}")
    return lines + _describe_stages(loader, steps)


def _describe_stages(loader: PackLoader, steps: int) -> list[str]:
    """Share of the packs and epochs at its end, for each stage that begins before `steps`."""
    stages = [stage for stage in loader.sources.stages if stage.from_step < steps]
    lines = []
    ends = [*(stage.from_step for stage in stages), steps][1:]
    for stage, end in zip(stages, ends, strict=True):
        epochs = loader.epoch_of(end)
        read = (f"{name} {float(share):.1%} (to epoch {epochs[name]:.2f})" for name, share in stage.shares.items())
        lines.append(f"steps {stage.from_step:,} to {end:,}: {', '.join(read)}")
    return lines
