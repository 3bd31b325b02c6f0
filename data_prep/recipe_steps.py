"""A recipe's section `corpora` as steps: commands of data_prep, each of which works on what the ones before it have made.

    corpora:
      sets:
        all:   {manifest: {reader: libritts, source: LibriTTS}}
        train: {from: all, filter: {max: duration=20}, encode: {}, compose: {template: asr}, pack: {seq_len: 2048}}

What goes in and comes out follows from the order: OUT/SET.jsonl, OUT/codes/SET, OUT/samples/SET, OUT/shards/SET. A flag
that a set gives itself goes before all that follows from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttt_dist.audio.registry import CODECS
from ttt_dist.config.corpora import CorporaConfig, Flags
from ttt_dist.util.errors import UserError
from ttt_dist.util.shipped import find_shipped

MANIFEST_STEPS = ("manifest", "filter", "utterances", "group")
STEPS = (*MANIFEST_STEPS, "encode", "compose", "import", "pack")
NEEDS = {
    "filter": "manifest", "utterances": "manifest", "group": "manifest", "encode": "manifest", "compose": "codes", "pack": "samples",
}  # fmt: skip
MADE_BY = {"manifest": "manifest", "codes": "encode", "samples": "compose or import"}
WITHOUT_EFFECT = {"workers"}
"""Flags that change nothing of what is made."""


@dataclass(frozen=True)
class Step:
    """A command of data_prep, with the flags that it is given."""

    key: str
    """Its place in the recipe."""
    command: str
    flags: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`train encode`."""
        return " ".join(self.key.split(".")[-2:])

    @property
    def out(self) -> Path:
        """What it makes."""
        return Path(self.flags["out"])

    def words(self, but: frozenset[str] | set[str] = frozenset()) -> list[str]:
        """Its command line behind `python -m data_prep`, but for some flags."""
        words = [self.command]
        for name, given in self.flags.items():
            flag = f"--{name.replace('_', '-')}"
            values = [] if given in (None, False) or name in but else given if isinstance(given, list) else [given]
            for value in map(str, values):
                if given is True:
                    words.append(flag)
                else:
                    words += [f"{flag}={value}"] if value.startswith("-") else [flag, value]
        return words


@dataclass(frozen=True)
class Made:
    """What there is of a set after its last step: the newest manifest, codes, samples; and where its recordings lie."""

    manifest: Path | None = None
    codes: Path | None = None
    samples: Path | None = None
    audio_root: Path | None = None


def plan_steps(corpora: CorporaConfig) -> list[Step]:
    """All steps of all sets, in their order. Raises UserError that names the key of what cannot be done."""
    return list(_Planner(corpora).steps())


class _Planner:
    def __init__(self, corpora: CorporaConfig) -> None:
        self.corpora = corpora
        self.out = Path(corpora.out)
        self.made: dict[str, Made] = {}
        self.codec = self._filled(corpora.codec)
        self.tokenizer = self._filled(corpora.tokenizer)

    def steps(self) -> Iterator[Step]:
        """Steps in the order of the sets, each with what the ones before it imply."""
        for name, settings in self.corpora.sets.items():
            key = f"corpora.sets.{name}"
            made = self._begin(key, str(settings["from"])) if "from" in settings else Made()
            commands = [command for command in settings if command != "from"]
            last = next((command for command in reversed(commands) if command in MANIFEST_STEPS), None)
            for command in commands:
                if command not in STEPS:
                    raise UserError(f"{key}.{command}: no such step; steps are {', '.join(STEPS)}")
                if command in NEEDS and getattr(made, NEEDS[command]) is None:
                    need = NEEDS[command]
                    raise UserError(
                        f"{key}.{command}: there is nothing to work on; put {MADE_BY[need]} before it, or `from`"
                    )
                own = self._filled({**self.corpora.every.get(command, {}), **dict(settings[command])})  # type: ignore[arg-type]
                manifest = self.out / (f"{name}.jsonl" if command == last else f"{name}-{command}.jsonl")
                flags = {**self._implied(name, command, made, manifest, own), **own}
                yield Step(f"{key}.{command}", command, flags)
                made = self._after(name, command, made, flags)
            self.made[name] = made

    def _begin(self, key: str, name: str) -> Made:
        """What a set goes on from."""
        if name in self.made:
            return self.made[name]
        if ".jsonl" in Path(name).suffixes:
            path = Path(self._filled(name))
            return Made(manifest=path, audio_root=path.parent)
        raise UserError(f"{key}.from: {name} is no set before this one, and no manifest (.jsonl)")

    def _implied(self, name: str, command: str, made: Made, manifest: Path, own: Flags) -> Flags:
        """The flags of a step that follow from what is there already."""
        if command in MANIFEST_STEPS:
            held_out = {"holdout_out": self.out / f"{name}-heldout.jsonl"} if "holdout_every" in own else {}
            source = {} if command == "manifest" else {"manifest": made.manifest}
            return {**source, "out": manifest, **held_out}
        if command == "encode":
            out = self.out / "codes" / name
            return {"manifest": made.manifest, "audio_root": made.audio_root, **self._codec_flags(own), "out": out}
        if command == "compose":
            return {"codes": made.codes, **self._tokenizer_flags(own), "out": self.out / "samples" / name}
        if command == "import":
            out = self.out / "samples" / name
            return {"tokenizer": self.tokenizer or self.out / "tokenizer", "codec": self._known_codec(), "out": out}
        return {"samples": made.samples, "out": self.out / "shards" / name}

    def _codec_flags(self, own: Flags) -> Flags:
        """The codec; the first set teaches the one that is to be learnt."""
        known = self._known_codec()
        if known == self.codec or "codec" in own:
            return {"codec": known}
        learnt, self.codec = self.codec, known
        return {"codec": learnt, "train_codec": True, "codec_out": self.out / "codec"}

    def _known_codec(self) -> str:
        """NAME:FOLDER of the codec, which may yet have to be learnt."""
        is_learnt = self.codec in CODECS and CODECS[self.codec].is_learnt
        return f"{self.codec}:{self.out / 'codec'}" if is_learnt else self.codec

    def _tokenizer_flags(self, own: Flags) -> Flags:
        if self.tokenizer is not None or "tokenizer" in own:
            return {"tokenizer": self.tokenizer}
        self.tokenizer = str(self.out / "tokenizer")
        return {"train_tokenizer": True, "tokenizer_out": self.tokenizer}

    def _after(self, name: str, command: str, made: Made, flags: Flags) -> Made:
        """What there is behind a step."""
        out = Path(flags["out"])
        if command == "manifest":
            source = Path(flags.get("source", ""))
            root = Path(flags.get("audio_root") or (source if source.is_dir() else source.parent))
            if flags.get("holdout_out"):
                self.made[f"{name}-heldout"] = Made(manifest=Path(flags["holdout_out"]), audio_root=root)
            return Made(manifest=out, audio_root=root)
        if command in MANIFEST_STEPS:
            return Made(manifest=out, audio_root=made.audio_root)
        if command == "pack":
            return made
        return replace(made, codes=out, samples=None) if command == "encode" else replace(made, samples=out)

    def _filled(self, value: Any) -> Any:
        """A value with the folders of this machine in place of their names."""
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, str):
            for name, folder in self.corpora.folders.items():
                value = value.replace(f"{{{name}}}", str(find_shipped(folder)))
        return value
