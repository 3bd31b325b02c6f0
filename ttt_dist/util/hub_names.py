"""Names of a model hub in the place of folders: nothing here is fetched by name."""

import re
from pathlib import Path

from ttt_dist.util.errors import UserError
from ttt_dist.util.similar_paths import remedy_for

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def require_folder(what: str, folder: str | Path, then: str) -> Path:
    """`folder` as a path. Raises UserError where it is none; of what may be a hub's name, with how to get a folder of it.

    `what` is the option or key, with its value; `then` the step after the download, with DIR for the folder.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{what}: is a file; name the folder that it lies in")
    name = str(folder)
    if not _NAME.fullmatch(name):
        raise UserError(f"{what}: no such folder; {remedy_for(path, 'correct the path')}")
    raise UserError(
        f"{what}: no such folder, and models are not fetched by name: `hf download {name} --local-dir DIR`, then {then}"
    )
