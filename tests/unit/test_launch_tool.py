"""What tools/launch.py finds without other hosts: the host file, choices from it, ports, what a host lacks."""

import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_dist.tools.launch import (
    Hosts,
    chosen_hosts,
    lacks,
    marker,
    parse_arguments,
    port_problem,
    read_hostfile,
    run_config,
)
from ttt_dist.util.errors import UserError

CONFIG = str(Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# a comment\n\nn1 slots=4  # another\n  n2   slots=8\n")
    return path


def test_a_host_file(hostfile: Path) -> None:
    assert read_hostfile(hostfile) == {"n1": 4, "n2": 8}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n1 slots=4\nn2 slot=4\n", ":2: 'n2 slot=4' is not `NAME slots=N`"),
        ("n1\n", ":1: 'n1' is not"),
        ("n1 slots=0\n", ":1: 'n1 slots=0' is not"),
        ("n1 slots=4 n2 slots=4\n", ":1: "),
        ("n1 slots=4\n\nn1 slots=4\n", ":3: n1 is there twice"),
        ("# none\n", "names no host"),
        (b"\xff\xfe", "cannot be read"),
        (b"\xef\xbb\xbfn1 slots=4\n", "begins with a byte order mark"),
        ("n1 slots=4\n".encode("utf-16"), "cannot be read"),
        ("n1 slots=4\n".encode("utf-16-le"), ":1: "),
        ("n1 slots=" + "9" * 5000, ":1: 'n1 slots=999"),
        ("n1 slots=٣\n", ":1: 'n1 slots=٣' is not"),
        ("n1 slots=-1\n", ":1: 'n1 slots=-1' is not"),
        ("n\u00adode slots=2\n", ":1: 'n\\xadode slots=2' is not"),
        ("n1\x85 slots=4\n", ":1: "),
        ("n" * 10**7 + " slots=4\n", "has 10,000,009 bytes"),
    ],
)
def test_a_wrong_host_file_names_the_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_hostfile(path)
    assert str(path) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


@settings(max_examples=300)
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.from_regex(r"n[0-9] slots=[0-9]\s?", fullmatch=True).map(str.encode)
)
def test_any_host_file_is_read_or_refused_in_a_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts"
        path.write_bytes(content)
        try:
            pool = read_hostfile(path)
        except UserError as error:
            pool, said = {}, str(error)
        assert (pool and all(slots > 0 for slots in pool.values())) or (said.isprintable() and len(said) < 300)


def chosen(monkeypatch: pytest.MonkeyPatch, *options: str) -> Hosts | None:
    """Hosts that a command line comes to."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *options, "ttt_dist/train.py", "--config", CONFIG])
    return chosen_hosts(parse_arguments())


def test_choices_are_those_of_deepspeed(hostfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"--hostfile={hostfile}"
    assert chosen(monkeypatch) is None
    assert chosen(monkeypatch, file) == {"n1": [0, 1, 2, 3], "n2": list(range(8))}
    assert chosen(monkeypatch, file, "--include=n2:0,3") == {"n2": [0, 3]}
    assert chosen(monkeypatch, file, "--exclude=n1") == {"n2": list(range(8))}
    assert chosen(monkeypatch, file, "--num_nodes=1", "--num_gpus=2") == {"n1": [0, 1]}
    for options, said in (
        (["--include=n3"], "n3"),
        (["--include=n1:4"], "No slot '4'"),
        (["--exclude=n1@n2"], "leaves no host"),
        (["--include=n1", "--num_gpus=1"], "do not go with"),
        (["--hostfile=no-such-file"], "no-such-file"),
    ):
        with pytest.raises(UserError) as error:
            chosen(monkeypatch, file, *options)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_the_config_is_found_behind_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--dry-run", "train.steps=7", "--config", CONFIG, "run_dir=runs/other"]
    monkeypatch.setattr(sys, "argv", ["launch.py", "--num_gpus=2", "ttt_dist/train.py", *arguments])
    path, config = run_config(parse_arguments())
    assert (path, config.train.steps, config.run_dir) == (CONFIG, 7, "runs/other")
    monkeypatch.setattr(sys, "argv", ["launch.py", "ttt_dist/evaluate.py", "--config", CONFIG])
    with pytest.raises(UserError, match=r"ttt_dist/evaluate\.py: tools/launch\.py starts"):
        run_config(parse_arguments())


def test_what_a_host_lacks(tmp_path: Path) -> None:
    assert lacks([str(tmp_path)], ["json", "torch.distributed"]) == ""
    assert lacks(["/no/such", str(tmp_path)], ["no_such_module", "no_such.module"]) == (
        "lacks /no/such, the Python module no_such_module, the Python module no_such.module"
    )


def test_ports() -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port_problem(port).startswith(f"port {port} cannot be opened ([Errno 98] Address already in use); ")
    assert port_problem(port) == ""
    assert "65535" in port_problem(70000)


def test_the_mark_of_a_shared_run_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with marker(tmp_path / "runs" / "mine") as mark:
        assert mark is not None and mark.parent == tmp_path and mark.is_file()
    assert not list(tmp_path.iterdir())
