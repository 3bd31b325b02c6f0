"""Where a name such as recipes/demo.yaml leads outside a checkout: to what the package holds under it (`ttt_dist/shipped`)."""

import os
from pathlib import Path

HOME = Path(__file__).resolve().parents[1] / "shipped"
FOLDERS = {path.name for path in HOME.iterdir()} if HOME.is_dir() else set()


def find_shipped(path: str | Path) -> Path:
    """`path` where that is there; else, if it begins with a folder of FOLDERS, the package's own, and `path` where it has none."""
    given = Path(path)
    is_ours = bool(given.parts) and given.parts[0] in FOLDERS and not os.path.exists(given)
    return HOME / given if is_ours and os.path.exists(HOME / given) else given
