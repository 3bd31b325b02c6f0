"""`train.init_from` that is no imported model: what it is, and the command that makes one of it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.structures import tiny_layout
from ttt_dist.checkpoint.restore import imported_layout
from ttt_dist.sequence.tokens import released
from ttt_dist.util.errors import UserError

IMPORT = r"`python tools/convert_checkpoint\.py import-hf --source "


def test_a_published_folder_names_the_import(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen2.5-0.5B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    told = rf"is a published model.*{IMPORT}{folder} --out models/Qwen2\.5-0\.5B --codebook 12`"
    with pytest.raises(UserError, match=told):
        imported_layout(str(folder), tiny_layout())
    with pytest.raises(UserError, match=r"--layout released`, then train\.init_from=models/Qwen2\.5-0\.5B"):
        imported_layout(str(folder), released())


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "gpt2"])
def test_a_name_is_not_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = rf"init_from={name}: no such folder, and models are not fetched by name: `hf download {name} --local-dir DIR`, then {IMPORT}DIR"
    with pytest.raises(UserError, match=told):
        imported_layout(name, tiny_layout())


def test_other_places_are_named(tmp_path: Path) -> None:
    layout = tiny_layout()
    (tmp_path / "run" / "export").mkdir(parents=True)
    layout.save(tmp_path / "run" / "export" / "token_layout.json")
    assert imported_layout(str(tmp_path / "run" / "export"), layout) == layout
    with pytest.raises(UserError, match=rf"is a run; start from its model, train\.init_from={tmp_path}/run/export"):
        imported_layout(str(tmp_path / "run"), layout)
    for path, told in (
        (tmp_path / "none" / "of" / "it", "no such folder; correct the path"),
        (tmp_path / "run" / "export" / "token_layout.json", "is a file; name the folder"),
    ):
        with pytest.raises(UserError, match=told):
            imported_layout(str(path), layout)
    shutil.rmtree(tmp_path / "run" / "export")
    with pytest.raises(UserError, match=r"is no model folder \(it lacks token_layout\.json\)"):
        imported_layout(str(tmp_path / "run"), layout)
