"""What an evaluation is asked to do, and the fingerprint by which its parts know each other."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.objective import Masking
from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.evaluation.judge_registry import OWN, judge_files
from ttt_dist.evaluation.tasks.registry import Task, find_task
from ttt_dist.util.atomic_files import sha256_file, sha256_folder

FORMAT = "ttt_dist evaluation 3"


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """The command line, checked."""

    task: str
    """A name of TASKS, or package.module:NAME of one's own."""
    model: Path
    data: Path
    out: Path
    template: str
    decoding: DecodeSettings
    audio_root: Path | None = None
    judges: tuple[str, ...] = (OWN,)
    decoder_command: str | None = None
    normaliser: str | None = None
    text_only: bool = False
    quality: bool = False
    meteor: bool = False
    ceiling: bool = True
    """Own speech: whether recordings, and these through the codec, are judged as well."""
    draws: int = 8
    """Of noise, per sample of the likelihood."""
    estimator: Masking = "exact_count"
    """How that noise is drawn: objective.masking."""
    limit: int | None = None
    part_size: int = 128
    batch: int = 32
    workers: int = 1
    seed: int = 0

    @property
    def row(self) -> Task:
        """The task. Raises UserError where there is none of that name."""
        return find_task(self.task)

    @property
    def parts(self) -> Path:
        """The folder of the parts."""
        return self.out / "parts" / self.row.name

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the records: flat, so that the first difference can be named.

        Not in it: what changes no record (batch, workers), what scores them afterwards (the normaliser), the recordings.
        """
        import torch

        heard_by = [sha256_folder(path) if path.is_dir() else sha256_file(path) for path in judge_files(self.judges)]
        model = {"model": sha256_folder(self.model), "data": self._data_hash()}
        about = {name: getattr(self, name) for name in ("task", "template", "limit", "part_size", "seed")}
        about |= {
            "judge": " and ".join(self.judges),
            "decoder_command": self.decoder_command,
            "text_only": self.text_only,
            "quality": self.quality,
            "meteor": self.meteor,
            "ceiling": self.ceiling,
            "draws": self.draws,
        }
        about |= {"estimator": self.estimator} if "estimator" in self.row.takes else {}
        about |= {"task_version": self.row.version} if self.row.version else {}
        decoding = {f"decoding.{name}": value for name, value in asdict(self.decoding).items()}
        device = "cuda" if torch.cuda.is_available() else "cpu"  # which also decides the precision
        known = {"format": FORMAT, "device": device, **model, **about}
        return known | {"judge_folder": " ".join(heard_by) or None, **decoding}

    def _data_hash(self) -> str:
        """Of shards that of their JSON files, which hold the checksums of the others."""
        if not is_shards(self.data):
            return sha256_file(self.data)
        names = metadata.shard_names(self.data, metadata.read(self.data))
        return " ".join(sha256_file(with_suffix(self.data.with_name(name), ".json")) for name in names)


def is_shards(data: Path) -> bool:
    """Whether `data` is a prefix of packed shards, and no data file."""
    return not data.is_file() and with_suffix(data, ".json").is_file()
