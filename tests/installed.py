"""The project as the containers install it, in an environment of its own: a wheel, the packages of this environment, no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFINITION = ROOT / "containers" / "ttt.def"


def container_files() -> dict[str, str]:
    """What the Apptainer recipe copies into the container, and where to."""
    section = DEFINITION.read_text(encoding="utf8").partition("%files\n")[2].partition("\n\n")[0]
    return dict(line.split() for line in section.splitlines())


def copy_sources(target: Path) -> None:
    """The files that the recipe names, links followed as Apptainer follows them."""
    target.mkdir()
    for name, there in container_files().items():
        copied = target / Path(there).relative_to("/opt/ttt-dist")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copied, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copied)


def install(folder: Path) -> Path:
    """Run containers/install.sh in an environment in `folder`; its folder of programs. Takes seconds and no network.

    It sees the packages of this environment but for the project, so a pin that does not hold would have to be fetched, and fails.
    """
    copy_sources(folder / "source")
    packages, programs = folder / "packages", folder / "environment" / "bin"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("ttt_dist", "__editable__")):
            (packages / path.name).symlink_to(path)
    venv.create(folder / "environment")
    (own,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (own / "packages.pth").write_text(f"{packages}\n")
    offline = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation"]
    command = [str(folder / "source" / "containers" / "install.sh"), *offline]
    subprocess.run(command, cwd=folder, env=environment(folder) | {"PYTHON": str(programs / "python")}, check=True)
    shutil.rmtree(folder / "source")
    return programs


def environment(folder: Path) -> dict[str, str]:
    """Variables under which programs of the environment in `folder` are found first, and nothing of the checkout."""
    programs = [str(folder / "environment" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": os.pathsep.join(programs)}
