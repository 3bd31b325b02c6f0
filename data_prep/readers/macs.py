"""MACS: captions of the street sounds of TAU Urban Acoustic Scenes 2019, in one YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, require_file
from data_prep.readers.stems import Stems
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import reading
from ttt_dist.util.errors import UserError


def read_macs(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """MACS.yaml: `files` of `filename` and `annotations`, each with `annotator_id` and `sentence`: an entry per sentence.

    Recordings are found by name anywhere below its folder, or below --audio-root; those that it does not name are skipped.
    """
    path = require_file(options.source / "MACS.yaml" if options.source.is_dir() else options.source)
    try:
        with reading(path) as file:
            files = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["files"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML with 'files' ({error}); fetch it again") from error
    stems = Stems(options.audio_root or path.parent, problems)
    for number, item in enumerate(files, start=1):
        place = f"{path}: file {number}"
        try:
            name = str(item["filename"])
            captions = [
                (str(note["annotator_id"]), str(note["sentence"] or "").strip()) for note in item["annotations"]
            ]
        except (KeyError, TypeError) as error:
            problems.report(f"{place}: lacks or garbles {error}; correct it")
            continue
        stem = Path(name).stem
        clip = stems.take(stem, problems, place)
        if clip is None or not add_duration(clip, problems, place):
            continue
        for annotator, sentence in captions:
            if sentence:
                yield {"id": f"{stem}-{annotator}", **clip, "text": sentence, "lang": options.lang or "en"}
            else:
                problems.skip("empty caption", f"{place}: annotator {annotator}")
    stems.skip_rest(problems)
