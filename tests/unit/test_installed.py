"""What `pip install` leaves works without the repository: commands, recipes, the demo; the containers install it the same way."""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.corpora import put, record
from tests.distributed.test_pipeline import SMALL
from tests.installed import ROOT, container_files, environment, install
from tests.recipe_corpora import LAPTOP, make_libritts
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
    assert not FOLDERS & {path.name for path in home.iterdir()}
    inspected = tell(home, "ttt-convert", "inspect", "--source", "runs/demo")
    assert "demo" in inspected


def commands_of(page: str, number: int) -> list[list[str]]:
    """The words of each command in one of a page's blocks of commands."""
    text = (ROOT / "docs" / page).read_text(encoding="utf8").replace("\\\n", "")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = [block for kind, block in blocks if not kind]
    return [shlex.split(line, comments=True) for line in commands[number].splitlines()]


TINY = {
    "ttt-prep run recipes/quickstart.yaml": [
        "corpora.sets.train.utterances.count=60",
        "corpora.sets.valid.utterances.count=6",
    ],
    "ttt-prep run": ["corpora.every.encode.codebook_size=32"],
    "ttt-train": [
        "train.steps=3",
        "train.warmup=1",
        "train.eval_packs=1",
        "model.hidden_size=32",
        "model.num_layers=2",
    ],
    "ttt-generate": ["--max-text=8", "--span-limit=12"],
    "ttt-evaluate": ["--limit=2", "--max-text=8"],
}


def follow(home: Path, commands: list[list[str]]) -> None:
    """Run a page's commands with settings under which they take seconds. A model of three steps may say nothing."""
    for words in commands:
        tiny = [word for start, more in TINY.items() if " ".join(words).startswith(start) for word in more]
        done = subprocess.run(
            [*words, *tiny], cwd=home, env=environment(home), capture_output=True, text=True, check=False
        )
        is_silent = words[0] == "ttt-generate" and "without speech" in done.stderr
        assert done.returncode == 0 or is_silent, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        if "--out" in words and words[-1].endswith(".wav") and not (home / words[-1]).exists():
            shutil.copy(find_shipped(ROOT / "demo_speech" / "three_alice_9.flac"), home / words[-1])


@pytest.mark.slow
def test_the_quickstart_s_commands_work(home: Path) -> None:
    install_it, digits, own = (commands_of("quickstart.md", number) for number in range(3))
    assert [words[:2] for words in install_it] == [["python3", "-m"], ["pip", "install"]]
    assert len(install_it) + len(digits) + len(own) <= 15
    follow(home, digits)
    assert (home / "runs/quickstart/report.html").is_file()

    (home / "recordings").mkdir()
    table = [re.findall(r"^```tsv\n(.*)$", (ROOT / "docs/quickstart.md").read_text(encoding="utf8"), re.MULTILINE)[0]]
    for path in sorted((ROOT / "demo_speech").glob("*_alice_*.flac"))[:40]:
        shutil.copy(path, home / "recordings")
        table.append(f"{path.name}\t{path.name.split('_')[0]}\talice")
    (home / "recordings" / "list.tsv").write_text("\n".join(table))
    follow(home, own)
    assert "wer" in json.loads((home / "runs/own/results/asr_summary.json").read_text())


SPEAK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ttt_dist.audio import load_codec, write_wav

export = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
chat = [{"role": "user", "content": "The old house."}]
prompt = tokenizer.apply_chat_template(chat, task="tts", add_generation_prompt=True, return_tensors="pt", return_dict=True)
how = {"custom_generate": export, "trust_remote_code": True, "seed": 0, "return_dict_in_generate": True}
out = model.generate(**prompt, **how, block=6, steps=3, span_limit=60, max_text=20)
codec = load_codec(f"{export}/codec")
write_wav("transformers.wav", codec.decode(torch.cat(out.spans[0]).numpy()), codec.sample_rate)
print(out.text[0])
"""


@pytest.mark.slow
def test_a_published_corpus_becomes_a_model_that_transformers_speaks_with(home: Path) -> None:
    """LibriTTS by its recipe, filtered, fifty steps, export: `model.generate` says, sample by sample, what ttt-generate does."""
    corpus = home / "LibriTTS"
    make_libritts(corpus, {"train-clean-100": 24, "dev-clean": 4})
    record(corpus / "train-clean-100/84/121/84_121_000099_000000.wav", seconds=26)
    put(
        corpus / "train-clean-100/84/121/84_121_000099_000000.normalized.txt",
        "Too long for the recipe's filter, by a second.",
    )
    tell(home, "ttt-prep", "run", "recipes/libritts.yaml", *LAPTOP, "corpora.every.pack.seq_len=512")
    assert len((home / "data/libritts/train.jsonl").read_text().splitlines()) == 24
    small = ["model.hidden_size=64", "model.num_layers=2", "model.num_heads=4", "model.ffn_hidden_size=128"]
    alone = [
        "train.init_from=null",
        "train.precision=fp32",
        "train.compile=false",
        "train.global_batch=2",
        "train.micro_batch=1",
    ]
    steps = ["train.steps=50", "train.warmup=5", "train.lr=3e-3", "objective.p_trunc=0", "telemetry.tensorboard=false"]
    tell(home, "ttt-train", "--config", "recipes/libritts.yaml", *small, *alone, *steps)
    export = "runs/libritts/export"
    how = ["--block=6", "--steps=3", "--span-limit=60", "--max-text=20", "--seed=0"]
    said = tell(home, "ttt-generate", "--model", export, "--prompt", "The old house.", "--out", "own.wav", *how)
    (home / "speak.py").write_text(SPEAK)
    told = tell(home, "python", "speak.py", export)
    assert told.splitlines()[-1].strip() == said.splitlines()[0].strip()
    assert (home / "transformers.wav").read_bytes() == (home / "own.wav").read_bytes()


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
