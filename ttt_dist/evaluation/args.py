"""What an evaluation is asked to do, and the fingerprint by which its parts know each other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.objective import Masking
from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.util.atomic_files import sha256_file, sha256_folder
from ttt_dist.util.errors import UserError

FORMAT = "ttt_dist evaluation 2"
JUDGE_FLAG = "--judge"
OWN = "model"
JUDGES = "model, whisper:DIR, ctc:DIR or command:'PROGRAM {wav} {text}'"


@dataclass(frozen=True)
class Form:
    """How a task is asked for; what it does is in ttt_dist/evaluation/tasks/registry.py."""

    template: str | None
    """Whose prompt it asks by, unless the user names another; None where the user must."""
    speaks: bool = False
    is_judged: bool = False
    """Whether speech is transcribed by judges."""


FORMS = {
    "asr": Form("asr"),
    "tts": Form("tts", speaks=True, is_judged=True),
    "audio_qa": Form("audio_chat", speaks=True, is_judged=True),
    "caption": Form("caption"),
    "classification": Form("classification"),
    "likelihood": Form(None),
    "speech_chat": Form("audio_chat", speaks=True),
}


@dataclass(frozen=True)
class EvalArgs:
    """The command line, checked."""

    task: str
    model: Path
    data: Path
    out: Path
    template: str
    decoding: DecodeSettings
    audio_root: Path | None = None
    judges: tuple[str, ...] = ("model",)
    decoder_command: str | None = None
    normaliser: str | None = None
    text_only: bool = False
    quality: bool = False
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
    def parts(self) -> Path:
        """The folder of the parts."""
        return self.out / "parts" / self.task

    @property
    def judge_folders(self) -> list[Path]:
        """The folders of the judges that are published recognisers."""
        return [Path(place) for kind, place in map(parse, self.judges) if kind in ("whisper", "ctc")]

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the records: flat, so that the first difference can be named.

        Not in it: what changes no record (batch, workers), what scores them afterwards (the normaliser), the recordings.
        """
        import torch

        judge_folder = " ".join(map(sha256_folder, self.judge_folders)) or None
        model = {"model": sha256_folder(self.model), "data": self._data_hash()}
        about = {name: getattr(self, name) for name in ("task", "template", "limit", "part_size", "seed")}
        about |= {
            "judge": " and ".join(self.judges),
            "decoder_command": self.decoder_command,
            "text_only": self.text_only,
            "quality": self.quality,
            "ceiling": self.ceiling,
            "draws": self.draws,
        }
        about |= {"estimator": self.estimator} if self.task == "likelihood" else {}
        decoding = {f"decoding.{name}": value for name, value in asdict(self.decoding).items()}
        device = "cuda" if torch.cuda.is_available() else "cpu"  # which also decides the precision
        known = {"format": FORMAT, "device": device, **model, **about}
        return known | {"judge_folder": judge_folder, **decoding}

    def _data_hash(self) -> str:
        """Of shards that of their JSON files, which hold the checksums of the others."""
        if not is_shards(self.data):
            return sha256_file(self.data)
        names = metadata.shard_names(self.data, metadata.read(self.data))
        return " ".join(sha256_file(with_suffix(self.data.with_name(name), ".json")) for name in names)


def is_shards(data: Path) -> bool:
    """Whether `data` is a prefix of packed shards, and no data file."""
    return not data.is_file() and with_suffix(data, ".json").is_file()


def labels(specs: Sequence[str]) -> dict[str, str]:
    """A short name for each judge -> its spec: its kind, with a number where there are several of one kind.

    Raises UserError where one is no judge, or named twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        kind, _ = parse(spec)
        if spec in found.values():
            raise UserError(f"{JUDGE_FLAG} {spec}: is named twice; name each judge once")
        same = sum(parse(other)[0] == kind for other in found.values())
        found[f"{kind}_{same + 1}" if same else kind] = spec
    return found


def parse(spec: str) -> tuple[str, str]:
    """The kind of a judge, and its folder or command. Raises UserError where it is none of JUDGES."""
    kind, _, place = spec.partition(":")
    if spec != OWN and (kind not in ("whisper", "ctc", "command") or not place):
        raise UserError(f"{JUDGE_FLAG} {spec}: is no judge; write {JUDGES}")
    return kind, place
