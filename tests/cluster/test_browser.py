"""The served page in a real browser: a text is spoken, a recording transcribed, and nothing is reported in the console."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.browser import Browser
from tests.cluster.needs import need
from tests.served import make_model, served
from tests.tiny_model import RATE

ANSWER = "document.querySelector('#answers article')"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("chromium")
    with served(make_model(tmp_path_factory.mktemp("served"))) as (address, _):
        yield address


@pytest.fixture
def page(url: str) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open(url)
        browser.until("document.getElementById('state').value == 'Ready'")
        yield browser
        assert browser.errors == []


def do(page: Browser, task: str, **fields: str | int) -> None:
    """Choose a task, fill in fields and press the button."""
    page.run(f"document.querySelector('input[value={task}]').click()")
    for name, value in fields.items():
        page.run(f"document.getElementById('{name}').value = {value!r}")
    page.run("document.getElementById('go').click()")


def done(page: Browser) -> str:
    """Wait for the answer; the text of it."""
    page.until(f"{ANSWER}?.dataset.state == 'done' && document.body.dataset.state == 'idle'")
    return str(page.run(f"[...{ANSWER}.querySelector('.reply').childNodes].map((n) => n.data ?? '').join('')"))


def test_a_text_is_spoken(page: Browser) -> None:
    do(page, "speak", text="three one four", seed=3)
    assert done(page).strip()
    spans = f"[...{ANSWER}.querySelectorAll('.span')]"
    assert page.run(f"{spans}.length") > 1
    page.until(f"{spans}.every((span) => span.dataset.heard)")  # each was played to its end while more was made
    player = f"{ANSWER}.querySelector('audio')"
    page.until(f"{player}.duration > 0")
    assert page.run(
        f"new Promise((ended) => {{ {player}.onended = () => ended({player}.currentTime > 0); {player}.play(); }})"
    )
    assert page.run(f"{ANSWER}.querySelector('a').download").endswith(".wav")
    assert "to first sound" in page.run(f"{ANSWER}.querySelector('.figures').textContent")
    page.run(f"{ANSWER}.querySelector('.picture').open = true")
    page.until(f"{ANSWER}.querySelector('img').naturalWidth > 500")


def test_a_file_is_transcribed(page: Browser, tmp_path: Path) -> None:
    path = tmp_path / "said.wav"
    soundfile.write(path, np.random.default_rng(0).standard_normal(RATE) * 0.1, RATE)
    page.choose_file("#file", path)
    page.until("document.getElementById('clip-player').duration == 1")
    do(page, "transcribe", seed=2)
    assert done(page).strip()
    assert "said.wav" in page.run(f"{ANSWER}.querySelector('.asked').textContent")


def test_the_microphone_is_heard(page: Browser) -> None:
    page.run("document.querySelector('input[value=chat]').click()")
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('state').value == 'Recording'")
    page.run("new Promise((done) => setTimeout(done, 500))")
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('clip-player').duration > 0.2")
    do(page, "chat", seed=2)
    done(page)
    assert "recording.wav" in page.run(f"{ANSWER}.querySelector('.asked').textContent")


def test_what_is_refused_is_said(page: Browser) -> None:
    do(page, "speak", text=" ")
    page.until("document.body.dataset.state == 'error'")
    assert page.run("document.getElementById('state').value") == "The text is empty; type one"
    assert page.run(ANSWER) is None
    assert "400" in page.errors.pop()  # browsers log every answer of this kind
