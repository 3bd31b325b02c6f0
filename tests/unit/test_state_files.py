"""Files of DeepSpeed's state: read back, summed, mapped; and what is not one of ours is refused without running it."""

import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from ttt_dist.checkpoint.manifest import file_checksum
from ttt_dist.checkpoint.torch_io import read_state, write_state
from ttt_dist.util.errors import UserError

READINGS = pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])


class RunsCode:
    """Whoever unpickles one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Foreign:
    """Harmless, but none of ours."""


def state_of_deepspeed() -> dict[str, Any]:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return {
        "loss_scaler": LossScaler(1.0),
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [OrderedDict(weight=fragment_address(numel=3, start=5))],
        "param_shapes": [OrderedDict(weight=torch.Size([3, 1]))],
        "weights": torch.arange(10.0),
        "rounded": torch.ones(3, dtype=torch.bfloat16),
        "betas": (0.9, 0.95),
    }


@READINGS
def test_what_deepspeed_saves_is_read_back(mmap: bool, tmp_path: Path) -> None:
    state = state_of_deepspeed()
    assert write_state(state, tmp_path / "a.pt") == file_checksum(tmp_path / "a.pt")
    found = read_state(tmp_path / "a.pt", mmap=mmap)
    assert found.keys() == state.keys()
    assert found["loss_scaler"].cur_scale == 1.0
    assert torch.equal(found["weights"], state["weights"])
    assert found["rounded"].dtype == torch.bfloat16
    for key in ("zero_stage", "param_slice_mappings", "param_shapes", "betas"):
        assert found[key] == state[key]


def test_mapped_tensors_stay_in_the_file(tmp_path: Path) -> None:
    write_state({"weights": torch.zeros(1000)}, tmp_path / "a.pt")
    mapped = read_state(tmp_path / "a.pt", mmap=True)["weights"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    assert str(tmp_path / "a.pt") in maps.read_text()
    assert bool((mapped == 0).all())


@READINGS
@pytest.mark.parametrize("inside", [RunsCode, lambda _: Foreign()], ids=["runs code", "foreign class"])
def test_nothing_is_run(inside: Any, mmap: bool, tmp_path: Path) -> None:
    torch.save({"a": inside(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: not a whole file of a checkpoint \(.*GLOBAL") as caught:
        read_state(tmp_path / "a.pt", mmap=mmap)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_whatever_byte_of_its_instructions_changes_it_is_a_state_or_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_state({"step": 3, "weights": {"a": torch.zeros(2, 2)}}, path)
    whole, random = path.read_bytes(), Random(0)
    end = whole.index(b"PK", 4)
    for _ in range(1500):
        content = bytearray(whole)
        content[random.randrange(end)] = random.choice((0, 255, *b"()tQRe.0ahKJ"))
        path.write_bytes(content)
        with suppress(UserError):
            read_state(path)


@READINGS
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 500),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"plain words"),
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: torch.save([1, 2], path),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "empty", "text", "pickle", "no state", "missing"],
)
def test_what_is_no_state_is_one_line(damage: Any, mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_state({"weights": torch.zeros(1000)}, path)
    damage(path)
    with pytest.raises(UserError, match=r"a\.pt: (missing|not a whole file|holds a list)") as caught:
        read_state(path, mmap=mmap)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(UserError, match="/dev/full: no space left"):
        write_state({"weights": torch.zeros(100_000)}, "/dev/full")
