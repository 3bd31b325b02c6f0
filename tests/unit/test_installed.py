"""What `pip install` leaves works without the repository: commands, recipes, the demo; the containers install it the same way."""

import json
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.distributed.test_pipeline import SMALL
from tests.installed import ROOT, container_files, environment, install
from ttt_dist.util import shipped
from ttt_dist.util.shipped import FOLDERS, find_shipped

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["scripts"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment in it, in which nothing else is."""
    folder = tmp_path_factory.mktemp("installed")
    install(folder)
    return folder


def tell(home: Path, *words: object) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        list(map(str, words)), cwd=home, env=environment(home), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_package_is_the_installed_one(home: Path) -> None:
    told = tell(home, "python", "-c", "import ttt_dist, data_prep; print(ttt_dist.__file__, data_prep.__file__)")
    assert all(Path(file).is_relative_to(home / "environment") for file in told.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_starts(name: str, home: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert f"usage: {name} " in tell(home, name, "--help")
    if name != "ttt-launch":  # whose flags are DeepSpeed's
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1


@pytest.mark.slow
def test_the_launcher_takes_the_installed_script(home: Path) -> None:
    argv = ["ttt-launch", "--num_gpus=2", "ttt_dist/train.py", "--config", "recipes/demo.yaml"]
    ask = "from ttt_dist.tools.launch import parse_arguments as parse; print(parse().user_script, sys.argv[2])"
    scripts = tell(home, "python", "-c", f"import sys; sys.argv = {argv}; {ask}").split()[-2:]
    assert scripts[0] == scripts[1] and Path(scripts[0]).is_file()
    assert Path(scripts[0]).is_relative_to(home / "environment")


@pytest.mark.slow
def test_the_demo_runs_from_the_installed_package(home: Path) -> None:
    """Its recipe, DeepSpeed's settings and the speech are the package's: nothing of them is in the folder."""
    demo = ["--config", "recipes/demo.yaml", "--source", "demo_speech", "--out", "runs/demo", "--processes", 1]
    told = tell(home, "ttt-pipeline", *demo, *SMALL, "train.steps=2")
    assert {"wer", "tts_wer"} <= json.loads(told.splitlines()[-1]).keys()
    assert (home / "runs/demo/report.html").is_file()
    assert sorted(path.name for path in home.iterdir()) == ["environment", "packages", "runs"]
    inspected = tell(home, "ttt-convert", "inspect", "--source", "runs/demo")
    assert "demo" in inspected


def test_a_file_of_the_user_goes_before_the_package_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"recipes", "ds_configs", "demo_speech"} == FOLDERS
    assert find_shipped("recipes/demo.yaml") == shipped.HOME / "recipes" / "demo.yaml"
    assert find_shipped("demo_speech").is_dir()
    for name in ("recipes/none.yaml", "tools/report.py", "", "/recipes/demo.yaml", "x" * 300):
        assert find_shipped(name) == Path(name)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").write_text("run_dir: mine\n")
    assert find_shipped("recipes/demo.yaml") == Path("recipes/demo.yaml")


def test_dockerfile_has_no_fault(tmp_path: Path) -> None:
    """By hadolint, which finds one that is put in."""
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("hadolint is not installed (the extra `dev`)")
    worse = tmp_path / "Dockerfile"
    worse.write_text((ROOT / "containers" / "Dockerfile").read_text().replace("bookworm\n", "bookworm\nRUN sudo ls\n"))
    status = [
        subprocess.run([hadolint, file], check=False).returncode for file in (ROOT / "containers/Dockerfile", worse)
    ]
    assert status == [0, 1]


def test_both_containers_run_the_same_steps() -> None:
    lines = [(ROOT / "containers" / name).read_text(encoding="utf8").splitlines() for name in ("Dockerfile", "ttt.def")]
    for line in ("/system.sh", "/install.sh"):
        assert all(any(text.endswith(line) for text in file) for file in lines)
    base = {line.split()[-1] for file in lines for line in file if line.upper().startswith("FROM")}
    assert len(base) == 1
    assert all((ROOT / name).exists() for name in container_files())
