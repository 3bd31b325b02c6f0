"""From an engine at any ZeRO stage to a model folder that `generate.py` and `evaluate.py` read."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.checkpoint.manager import METADATA, on_first_rank
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.run import Config
from ttt_dist.data import metadata
from ttt_dist.data.loader import step_sizes
from ttt_dist.data.metadata import ASSETS, is_text_set
from ttt_dist.data.speakers import shard_speakers
from ttt_dist.model.hf.families import eos_of
from ttt_dist.model.optimizer_groups import VOCABULARY, optimizer_groups
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.telemetry.json_lines import read_metrics
from ttt_dist.util.console import note
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

if TYPE_CHECKING:
    import deepspeed

    from ttt_dist.model.hf.adapter import Adaptation

EXPORT = "export"


def export_model(
    engine: "deepspeed.DeepSpeedEngine", mesh: Mesh, config: Recipe, layout: TokenLayout, folder: Path, done: int
) -> None:
    """Write the model folder from the engine's weights and what lies beside a training shard; collective.

    It is a model of the objective's stage that the last of the `done` updates was of.
    """
    from ttt_dist.model.hf.folder import export_folder
    from ttt_dist.parallel.gather import full_state_dict

    weights = full_state_dict(engine, mesh, config.model, layout)
    assets, objective = assets_folder(config), config.objective.at(max(done - 1, 0))

    def write() -> None:
        try:
            story = training_story(config, done, Path(config.run_dir))
            speakers = shard_speakers(config.data.prefixes().values())
            export_folder(
                folder, weights, config.model, layout, objective, assets,
                decoding=config.evaluation.decode, base_eos=base_eos(config), story=story, speakers=speakers,
                adaptation=adaptation_of(config, layout),
            )  # fmt: skip
        finally:
            deque(weights, maxlen=0)  # after a failure too: the other processes are sending

    if mesh.rank != 0:
        deque(weights, maxlen=0)
    on_first_rank(write)


def model_folder(path: Path) -> Path:
    """`path`, or where it is a checkpoint, the model folder of it: EXPORT in it, made once, which goes when it goes.

    Raises UserError where it cannot be made, or would lack what decoding takes.
    """
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: is a run; name its {EXPORT}/ folder, or one of its checkpoints/")
    if any(path.glob(f"step-*/{METADATA}")):
        raise UserError(f"{path}: holds checkpoints; name one of them")
    if not (path / METADATA).is_file():
        return path
    folder = path / EXPORT
    if folder.is_dir():
        return folder
    with lease(folder.with_name("making-export"), wait=True):  # processes of one evaluation: one makes it for all
        if not folder.is_dir():  # still
            note(f"{path}: a checkpoint; its weights become a model folder, {folder}")
            from ttt_dist.checkpoint.conversion import export_checkpoint

            export_checkpoint(path, folder, needs_speech=True)
    return folder


def adaptation_of(config: Config, layout: TokenLayout) -> "Adaptation | None":
    """What adapters were trained on; None where there are none, or nothing to put them on."""
    from ttt_dist.model.hf.adapter import Adaptation

    if not config.model.lora.r or config.train.init_from is None:
        return None
    groups = optimizer_groups(parameter_shapes(config.model, layout.padded_vocab_size), config.train)
    rows = {
        name: layout.num_text_tokens if group.only_new_rows else 0
        for group in groups
        for name in group.names
        if name in VOCABULARY and group.lr_scale
    }
    return Adaptation(config.train.init_from, rows)


def base_eos(config: Config) -> list[int]:
    """The ids that ended a text of the model that the run began with; none where it is gone, or began with random weights."""
    return [] if config.train.init_from is None else eos_of(Path(config.train.init_from))


def training_story(config: Config, step: int, run_dir: Path) -> dict[str, str]:
    """What a model card says of the training up to `step`, by name; what is not known is left out."""
    packs, start = step_sizes(config).trained(step), config.train.init_from
    lengths = {_pack_length(prefix) for prefix in config.data.prefixes().values()} - {None}
    told = {
        "training": f"{step:,} steps, {packs:,} packs, {config.train.precision}",
        "objective": str(config.objective.at(max(step - 1, 0))),
        "started from": "random weights" if start is None else Path(start).name,
    }
    if (lora := config.model.lora).r:
        told["adapters"] = f"rank {lora.r} on {', '.join(lora.target_modules)}; merged here, for peft in adapter/"
    if len(lengths) == 1 and (length := lengths.pop()):
        told["tokens"] = f"{packs * length:,} in packs of {length:,}, their padding included"
    path = run_dir / "metrics.jsonl"
    records = [one for one in read_metrics(path) if one["step"] <= step] if path.is_file() else []
    evaluated = [one for one in records if any(_is_loss(*item) for item in one.items())][-1:]  # of each set, a record
    found = [item for one in records if evaluated and one["step"] == evaluated[0]["step"] for item in one.items()]
    losses = [f"{name.removeprefix('eval_')} {value:.4f}" for name, value in found if _is_loss(name, value)]
    if losses:
        told["held-out loss"] = f"{', '.join(losses)} nats (step {evaluated[0]['step']:,})"
    return told


def _pack_length(prefix: str) -> int | None:
    """Tokens of a shard's packs; None where the shard is gone."""
    try:
        length: int | None = metadata.read(prefix)["seq_len"]
    except UserError:
        return None
    return length


def _is_loss(name: str, value: float | None) -> bool:
    return name.startswith("eval_") and name.endswith("loss") and value is not None


def assets_folder(config: Config) -> Path:
    """Whose tokenizer, codec and template an export takes: the folder of the first source, by name, that has all three."""
    prefixes = config.data.prefixes().values()
    folders = [Path(prefix).parent for prefix in prefixes if not is_text_set(prefix)]
    return next((folder for folder in folders if not _missing(folder)), folders[0])


def require_assets(config: Config) -> None:
    """Raise UserError where an export would lack something at the end of the run."""
    folder = assets_folder(config)
    if missing := _missing(folder):
        raise UserError(f"{folder}: lacks {', '.join(missing)}, which the exported model needs; pack the shards again")


def _missing(folder: Path) -> list[str]:
    return [name for name in ASSETS if not (folder / name).exists()]
