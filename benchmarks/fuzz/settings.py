"""Entrances of settings: YAML, overrides, host files, and the JSON that lies beside data and models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.corpora import GOLDEN
from benchmarks.fuzz.entrance import Entrance
from ttt_dist.audio import load_codec
from ttt_dist.audio.registry import describe_codec
from ttt_dist.config.deepspeed import require_accepted, zero_stage
from ttt_dist.config.loader import load_config
from ttt_dist.data import metadata
from ttt_dist.jobs.parts import find_parts, part_prefix, write_part
from ttt_dist.sequence.templates import load_template_settings
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.tools.launch import read_hostfile

OVERRIDES = "train.lr=1e-3\nrun_dir=runs/a\ntrain.steps=10\nmodel.num_layers=2\ndata.train=runs/b\nseed=3\n"


def copied(*names: str) -> Callable[[Path], None]:
    """Makes copies of golden files."""

    def make(folder: Path) -> None:
        for name in names:
            whole = GOLDEN / name
            copy = shutil.copytree if whole.is_dir() else shutil.copyfile
            copy(whole, folder / whole.name)

    return make


def make_overrides(folder: Path) -> None:
    copied("recipe.yaml")(folder)
    (folder / "overrides").write_text(OVERRIDES)


def read_overrides(folder: Path) -> None:
    given = (folder / "overrides").read_bytes().decode("utf8", "surrogateescape").split("\n")
    load_config(folder / "recipe.yaml", [text for text in given if text])


def make_hosts(folder: Path) -> None:
    (folder / "hosts").write_text("# cluster\nnode-1 slots=8\nnode-2 slots=8  # new\n\nnode-3 slots=4\n")


def read_hosts(folder: Path) -> None:
    read_hostfile(folder / "hosts")


def make_parts(folder: Path) -> None:
    for number in range(2):
        write_part(part_prefix(folder, number), {"part": number, "parts": 2, "counts": {"utterances": 3}, "files": {}})


def read_deepspeed(path: Path) -> None:
    zero_stage(path)
    require_accepted(path)


def resealed(content: bytes) -> bytes:
    """With the checksum of what it says now."""
    try:
        return metadata.render(json.loads(content)).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def read_codec(folder: Path) -> None:
    describe_codec(folder / "codec")
    load_codec(folder / "codec")


def file(name: str, place: str, kind: str, read: Callable[[Path], object]) -> Entrance:
    """One golden file, read by itself."""
    own = Path(place).name

    def read_it(folder: Path) -> None:
        read(folder / own)

    return Entrance(name=name, make=copied(place), files={own: kind}, read=read_it)


def read_parts(folder: Path) -> None:
    find_parts(folder, "encode")


PARTS = ("part-00000.json", "part-00001.json")
CODEC = {"codec/codec.json": "json", "codec/codebook.safetensors": "bytes"}
SETTINGS = (
    file("recipe", "recipe.yaml", "text", load_config),
    file("recorded config", "run/config.yaml", "text", load_config),
    Entrance(name="overrides", make=make_overrides, files={"overrides": "text"}, read=read_overrides),
    file("deepspeed", "ds_configs/zero1.json", "json", read_deepspeed),
    file("templates", "export/template.json", "json", load_template_settings),
    file("token layout", "export/token_layout.json", "json", TokenLayout.load),
    Entrance(name="hostfile", make=make_hosts, files={"hosts": "text"}, read=read_hosts),
    Entrance(name="codec", make=copied("export/codec"), files=CODEC, read=read_codec),
    Entrance(name="part", make=make_parts, files=dict.fromkeys(PARTS, "json"), read=read_parts),
    Entrance(
        name="part, resealed", make=make_parts, files=dict.fromkeys(PARTS, "tree"), read=read_parts, seal=resealed
    ),
)
