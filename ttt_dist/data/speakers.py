"""The speakers that a model knows by name. `data_prep compose` counts in each part those that its prompts name, `pack` sums
them up in the JSON of the shards, and a model folder lists them in speakers.json. Shards and models of before have none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ttt_dist.data import metadata
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

SPEAKERS = "speakers.json"
MOST_LISTED = 500


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Samples by speaker over several parts or shards: the MOST_LISTED commonest, commonest first, then by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_LISTED])


def shard_speakers(prefixes: Iterable[str | Path]) -> list[str]:
    """Names over the shards of a training, commonest first. A shard that is gone by now is left out: it costs no export."""
    return [*add_up(map(_counts, prefixes))]


def _counts(prefix: str | Path) -> Mapping[str, int]:
    try:
        source = metadata.read(prefix).get("source")
    except UserError:
        return {}
    counts: Mapping[str, int] = source.get("speakers", {}) if isinstance(source, dict) else {}
    return counts


def read_speakers(folder: Path) -> list[str]:
    """Names in a model folder, commonest first; none where it lists none. Raises UserError naming a file that is no list."""
    path = folder / SPEAKERS
    if not path.is_file():
        return []
    names = read_object(path, "export the model again").get("speakers")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f'{path}: does not hold {{"speakers": [NAMES]}}; correct it, or remove it')
    return names
