"""All entrances by name."""

from benchmarks.fuzz.corpora import CORPORA
from benchmarks.fuzz.entrance import Entrance
from benchmarks.fuzz.settings import SETTINGS
from benchmarks.fuzz.trained import TRAINED

SOURCE = f"{__name__}:ENTRANCES"
ENTRANCES: dict[str, Entrance] = {entrance.name: entrance for entrance in (*CORPORA, *SETTINGS, *TRAINED)}
