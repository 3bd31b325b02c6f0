"""Rows B1, B2, B6, B7 and B9: lines, headers, JSON and files that ended everything."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from kit import RECIPE, TRAIN, main, prep, row, run, wav, work, write


@row(
    "B1",
    "encode of 6 lines, 5 of them hostile, --max-errors 10",
    "^0: .*1 utterances",
    "hostile_lines::encode_goes_on_past",
)
def hostile(folder: Path) -> str:
    """One good line among some that no file, clock or disk can follow."""
    wav(folder / "good.wav")
    good: dict[str, Any] = {"id": "good", "audio": "good.wav", "text": "one", "duration": 1.0}
    hostile: list[dict[str, Any]] = [
        {"audio": "a\0b.wav"},
        {"audio": "x" * 300 + ".wav"},
        {"offset": 1e308, "duration": 1e308},
    ]
    hostile += [{"audio": ["good.wav"], "gaps": [0.0], "tail": 1e12}]
    lines = [json.dumps(good | changed | {"id": str(number)}) for number, changed in enumerate(hostile)]
    lines += [f'{{"id": "d", "audio": "good.wav", "text": "one", "duration": 1{"0" * 400}}}', json.dumps(good)]
    manifest = write(folder / "m.jsonl", "\n".join(lines) + "\n")
    words = ("--codec", f"melvq:{work()}/codes/codec", "--max-errors", "10")
    return prep("encode", "--manifest", manifest, *words, "--out", folder / "codes")


@row(
    "B1",
    "a name of 300 bytes in a table of 3 rows, --max-errors 1",
    "^2 rows",
    "hostile_lines::a_name_that_no_file_can_have",
)
def long_name(folder: Path) -> str:
    wav(folder / "a.wav")
    wav(folder / "b.wav")
    path = write(folder / "t.tsv", f"path\tsentence\na.wav\tone\n{'x' * 300}.wav\ttwo\nb.wav\tthree\n")
    said = prep("manifest", "--reader", "table", "--source", path, "--out", folder / "m.jsonl", "--max-errors", "1")
    rows = len((folder / "m.jsonl").read_text().splitlines()) if (folder / "m.jsonl").exists() else 0
    return f"{rows} rows, {said}"


@row(
    "B2",
    "16 kB of WAV at 16,001 Hz, read to 16 kHz in 3 GB of addresses",
    "^0: 0.5",
    "audio::odd_rates_give_torchaudios_samples",
)
def odd_rate(folder: Path) -> str:
    path = wav(folder / "a.wav", 0.5, 16_001)
    code = (
        "import resource, torch\n"
        "try:\n    from ttt_dist.audio.io import read_audio\n"
        "except ImportError:\n    from ttt_dist.audio.files import read_audio\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        f"print(len(read_audio({str(path)!r}, 16_000)) / 16_000, 's read')"
    )
    return run("-c", code)


@row("B2", "a WAV whose header says 2^31-1 Hz", "^1: .*samples a second", "sound_headers::a_rate_that_no_recording_has")
def absurd_rate(folder: Path) -> str:
    data = bytearray(wav(folder / "wav" / "one_a_0.wav").read_bytes())
    data[24:28] = (2**31 - 1).to_bytes(4, "little")
    write(folder / "wav" / "one_a_0.wav", bytes(data))
    line = {"id": "a", "audio": "wav/one_a_0.wav", "text": "one"}
    manifest = write(folder / "m.jsonl", json.dumps(line) + "\n")
    return prep("encode", "--manifest", manifest, "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")


@row(
    "B6",
    "a config of aliases of aliases: characters of the message",
    "^1: [0-9]{1,3} characters",
    "yaml_file::what_is_no_settings",
)
def aliases(folder: Path) -> str:
    items = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    items += [f"&a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 6)]
    said = run(*TRAIN, write(folder / "run.yaml", f"seed: [{', '.join(items)}]\n"), "--dry-run")
    return f"{said[:2]} {len(said)} characters" if not said.startswith("traceback") else said[:200]


def dry(folder: Path, name: str, **changed: object) -> str:
    """A dry run on a copy of the shard, in one of whose JSON files values are changed."""
    shutil.copytree(work() / "shards", folder / "shards")
    path = folder / "shards" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changed).replace('"HUGE"', "1e999"))
    return run(*TRAIN, write(folder / "run.yaml", RECIPE.format(folder=folder, work=folder)), "--dry-run")


@row("B6", "a shard's JSON with `files` as a number", "^[12]: .*train.json", "hostile_json::every_value_of_a_shard")
def shard_files(folder: Path) -> str:
    return dry(folder, "train.json", files=7)


@row(
    "B6",
    "a token layout whose first_code is a word",
    "^[12]: .*layout",
    "hostile_json::every_value_of_a_token_layout",
)
def layout_ids(folder: Path) -> str:
    values = json.loads((work() / "shards" / "train.json").read_text())
    key = next(key for key in values if "layout" in key)
    return dry(folder, "train.json", **{key: values[key] | {"first_code": "x"}})


@row("B6", "codec.json with num_mels 200,000: peak memory", "^1: .*peak 0", "hostile_json::every_value_of_a_codec")
def codec(folder: Path) -> str:
    """A number in codec.json that would take gigabytes before its hash is compared."""
    shutil.copytree(work() / "codes" / "codec", folder / "codec")
    path = folder / "codec" / "codec.json"
    values = json.loads(path.read_text())
    holder = (
        values if "num_mels" in values else next(v for v in values.values() if isinstance(v, dict) and "num_mels" in v)
    )
    holder["num_mels"] = 200_000
    path.write_text(json.dumps(values))
    wav(folder / "a.wav")
    manifest = write(folder / "m.jsonl", '{"id": "a", "audio": "a.wav", "text": "one"}\n')
    words = ["encode", "--manifest", str(manifest), "--codec", f"melvq:{folder}/codec", "--out", str(folder / "codes")]
    code = (
        "import atexit, resource, runpy, sys\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6\n"
        "atexit.register(lambda: print(f'peak {peak():.1f} GB'))\n"
        f"sys.argv = ['data_prep', *{words!r}]\n"
        "runpy.run_module('data_prep', run_name='__main__')\n"
    )
    return run("-c", code)


@row("B6", "a host file with slots= of 5,000 digits", "^[12]: .*hosts", "launch_tool::a_wrong_host_file_names_the_line")
def slots(folder: Path) -> str:
    hosts = write(folder / "hosts", f"n1 slots={'9' * 5000}\n")
    return run("tools/launch.py", "--hostfile", hosts, "ttt_dist/train.py", "--config", "recipes/demo.yaml")[:400]


@row(
    "B7",
    "an Arrow stream with an offset beyond its end, listed",
    "^1: .*data.arrow",
    "containers::a_damaged_arrow_file_is_refused",
)
def arrow(folder: Path) -> str:
    import pyarrow as pa

    audio = [{"bytes": wav(folder / "a.wav").read_bytes(), "path": "a.wav"}] * 4
    table = pa.table({"audio": audio, "text": ["one"] * 4})
    (folder / "set").mkdir()
    path = folder / "set" / "data.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data, offsets = path.read_bytes(), struct.pack("<5i", 0, 3, 6, 9, 12)
    path.write_bytes(data.replace(offsets, struct.pack("<5i", 0, 3, 6, 9, 2**31 - 1)))
    return prep("manifest", "--reader", "hf", "--source", folder / "set", "--out", folder / "m.jsonl")


@row("B8", "a FIFO named a.wav among recordings", "^[01]: ", "sound_headers::what_is_no_file_is_refused")
def fifo(folder: Path) -> str:
    wav(folder / "wav" / "two_a_1.wav")
    os.mkfifo(folder / "wav" / "one_a_0.wav")
    words = ("manifest", "--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav", "--source", folder / "wav")
    return run("-m", "data_prep", *words, "--out", folder / "m.jsonl", seconds=40)


@row(
    "B8", "control characters of a file's name in messages", "^[01]: no", "hostile_lines::a_message_is_one_line_of_text"
)
def control(folder: Path) -> str:
    manifest = write(
        folder / "m.jsonl", json.dumps({"id": "a", "audio": "\x1b[31mred\nline.wav", "text": "one"}) + "\n"
    )
    said = prep("encode", "--manifest", manifest, "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")
    return f"{said[:2]} {'raw' if chr(27) in said else 'no'} control characters"


@row("B9", "data_prep under mpirun without libmpi", "^[12]: .*MPI", "jobs::mpi_that_cannot_be_used")
def without_libmpi(folder: Path) -> str:
    env = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    words = ("--manifest", work() / "wav.jsonl", "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")
    return run("-m", "data_prep", "encode", *words, env=env, seconds=60)


@row("B9", "the time of day jumps an hour ahead: guard.stop_after of a minute", "^0: None", "stopping::stop_after")
def clock(folder: Path) -> str:
    code = (
        "import time, torch, torch.distributed as dist\n"
        "try:\n    from ttt_dist.training.stop_signals import SignalHandler as Handler\n"
        "except ImportError:\n    from ttt_dist.training.stopping import StopRequests as Handler\n"
        f"dist.init_process_group('gloo', init_method='file://{folder}/meet', rank=0, world_size=1)\n"
        "handler, now = Handler(60.0), time.time\n"
        "time.time = lambda: now() + 3600\n"
        "asked = getattr(handler, 'should_stop', None) or handler.agreed\n"
        "print(asked(torch.device('cpu')))\n"
    )
    return run("-c", code)


if __name__ == "__main__":
    main()
