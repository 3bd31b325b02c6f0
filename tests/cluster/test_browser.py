"""The served page in a real browser: speaking, transcribing, chatting, by keyboard too; nothing is reported in the console."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import browser
from tests.browser import Browser
from tests.cluster.page import (
    ANSWER,
    CHAT,
    CONTRAST,
    ENDLESS,
    WITHOUT_WEBM,
    do,
    done,
    opened,
    record,
    refused_was_logged,
)
from tests.served import served
from tests.tiny_model import RATE
from ttt_dist.data.speakers import SPEAKERS

SCHEMES = ["light", "dark"]


def colours(page: Browser, canvas: str) -> int:
    """How many colours are in a canvas."""
    pixels = (
        f"new Uint32Array({canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height).data.buffer)"
    )
    return int(page.run(f"new Set({pixels}).size"))


def test_a_text_is_spoken(page: Browser) -> None:
    do(page, "speak", text="three one four", seed=4)
    text = done(page).strip()
    assert text and page.run("document.getElementById('announcer').textContent").startswith(f"Answer: {text}.")
    assert "as ann" in page.run(f"{ANSWER}.querySelector('.asked').textContent")  # the first of those it knows
    spans = f"[...{ANSWER}.querySelectorAll('.reply .span')]"
    assert page.run(f"{spans}.length") > 1
    page.until(f"{spans}.every((span) => span.dataset.heard)")  # each was played to its end while more was made
    player = f"{ANSWER}.querySelector('audio')"
    page.until(f"{player}.duration > 0")
    assert colours(page, f"{ANSWER}.querySelector('.sound canvas')") > 50
    page.run(f"{ANSWER}.querySelector('.play').click()")
    page.until(f"{player}.ended && {player}.currentTime > 0")
    assert page.run(f"{ANSWER}.querySelector('.play').getAttribute('aria-label')") == "Play"
    assert page.run(f"{ANSWER}.querySelector('a').download").endswith(".wav")


def test_its_figures_add_up(page: Browser) -> None:
    do(page, "speak", text="three one four", seed=4)
    done(page)
    texts = "[...it.children].map((one) => one.textContent)"
    figures: dict[str, tuple[float, list[float]]] = {}
    for name, value in page.run(f"[...{ANSWER}.querySelectorAll('.figures div')].map((it) => {texts})"):
        parts = [float(word) for word in re.findall(r"\d+(?:\.\d+)?", name)]
        figures[re.split("[:,]", name)[0]] = (float(value.split()[0]), parts)
    assert set(figures) == {"of speech", "in all", "real-time factor", "tokens", "forward passes"}
    for whole, parts in (figures["tokens"], figures["forward passes"]):
        assert whole == sum(parts)
    (speech, (codes, rate)), (total, (first_text, first_sound)) = figures["of speech"], figures["in all"]
    assert speech == pytest.approx(codes / rate, abs=0.01)
    assert 0 <= first_text <= total and 0 < first_sound <= total
    assert figures["real-time factor"] == (pytest.approx(total / speech, abs=0.02), [total, speech])


def test_the_spectrogram_finds_a_tone(page: Browser) -> None:
    tone = "Float32Array.from({length: 4000}, (_, i) => Math.sin(2 * Math.PI * 1000 * i / 8000))"
    power = f"import('./spectrogram.js').then(({{ power }}) => [...power({tone}, 2000)])"
    assert np.argmax(page.run(power)) == 1000 * 512 / 8000


CELL = """(canvas, count, query, key) => {
  const at = (token) => Math.floor(((token + 0.5) * canvas.width) / count);
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const [r, g, b] = copy.getImageData(at(key), at(query), 1, 1).data;
  return [r, g, b].reduce((text, value) => text + value.toString(16).padStart(2, "0"), "#");
}"""


def told_of(page: Browser, card: str) -> dict[str, Any]:
    """What the server says of who sees whom in an answer."""
    return dict(page.run(f"fetch(`answers/${{{card}.dataset.answer}}/attention`).then((it) => it.json())"))


def test_who_sees_whom_is_drawn_and_told(page: Browser) -> None:
    do(page, "speak", text="three one four", seed=4)
    done(page)
    page.run(f"{ANSWER}.querySelector('.attention').open = true")
    page.until(f"{ANSWER}.querySelectorAll('.legend li').length == 5")
    told = told_of(page, ANSWER)
    canvas = f"{ANSWER}.querySelector('.attention canvas')"
    span = next(place for place, number in enumerate(told["spans"]) if number and place > told["prompt"])
    end = told["ends"][span]
    wanted = {
        (0, 0): "text-text", (0, 5): "unseen", (end, span): "text-audio",
        (span, end - 1): "audio-own", (span, 2): "audio-earlier", (span, end): "unseen",
    }  # fmt: skip
    for (query, key), name in wanted.items():
        colour = page.run(f"getComputedStyle(document.body).getPropertyValue('--{name}').trim()")
        assert page.run(f"({CELL})({canvas}, {told['length']}, {query}, {key})") == colour, (query, key)
    page.run(f"{canvas}.focus()")
    for key, row in (("End", told["length"]), ("ArrowUp", told["length"] - 1), ("Home", 1), ("ArrowDown", 2)):
        page.press(key)
        value = page.run(f"{canvas}.getAttribute('aria-valuetext')")
        assert value.startswith(f"Token {row},") and value.endswith(f"sees tokens 1 to {told['ends'][row - 1]}.")


def test_a_file_is_transcribed(page: Browser, tmp_path: Path) -> None:
    path = tmp_path / "said.wav"
    soundfile.write(path, np.random.default_rng(0).standard_normal(RATE) * 0.1, RATE)
    page.choose_file("#file", path)
    page.until("document.querySelector('#clip-sound .length')?.textContent == '1.00 s'")
    assert colours(page, "document.querySelector('#clip-sound canvas')") > 50
    do(page, "transcribe", seed=2)
    assert done(page).strip()
    assert "said.wav" in page.run(f"{ANSWER}.querySelector('.asked').textContent")


def test_the_microphone_is_heard(page: Browser) -> None:
    page.run("document.querySelector('input[value=chat]').click()")
    record(page)
    do(page, "chat", seed=2)
    done(page, f"{CHAT}[0]")
    assert "recording.webm" in page.run(f"{CHAT}[0].querySelector('.asked').textContent")


def test_the_microphone_is_heard_as_wav_where_the_server_reads_nothing_else(page: Browser, url: str) -> None:
    page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_WEBM)
    opened(page, url)
    page.run("document.querySelector('input[value=transcribe]').click()")
    record(page)
    do(page, "transcribe", seed=2)
    done(page)
    assert "recording.wav" in page.run(f"{ANSWER}.querySelector('.asked').textContent")


@pytest.fixture
def limited(model: Path, tmp_path: Path) -> Iterator[Browser]:
    """The page of a model that lists no speakers and takes few tokens."""
    folder = shutil.copytree(model, tmp_path / "limited", ignore=shutil.ignore_patterns(SPEAKERS))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 260}))
    with served(folder) as (url, _), Browser() as browser:
        opened(browser, url)
        yield browser
        assert browser.errors == []


def test_a_model_that_lists_no_speakers_asks_for_one(limited: Browser) -> None:
    remark = f"{ANSWER}.querySelector('.remark').textContent"
    do(limited, "speak", text="three one four")
    done(limited)
    assert "trained with the names of speakers" in limited.run(remark)
    limited.run("document.getElementById('speaker-name').value = 'ann'")
    do(limited, "speak", text="three one four", seed=4)
    limited.until("document.querySelectorAll('#answers article').length == 2")
    assert done(limited).strip() and "as ann" in limited.run(f"{ANSWER}.querySelector('.asked').textContent")
    assert limited.run(remark) == ""


def test_turns_that_no_longer_fit_are_told(limited: Browser) -> None:
    for turn in range(4):
        do(limited, "chat", text="three one four", seed=3)
        done(limited, f"{CHAT}[{turn}]")
    told = limited.run(f"{CHAT}.map((card) => card.querySelector('.remark').textContent)")
    assert "no longer fit" not in told[0] and "turns of this chat no longer fit, and were left out" in told[-1].replace(
        "\u00a0", " "
    )


def test_a_chat_remembers_until_a_new_one_begins(page: Browser) -> None:
    def prompt(turn: int) -> int:
        return int(told_of(page, f"{CHAT}[{turn}]")["prompt"])

    page.run("document.querySelector('input[value=chat]').click(); document.getElementById('text').focus()")
    page.run("document.getElementById('seed').value = 3")  # of which no answer is empty
    for turn in range(3):
        page.write("three one four")
        page.press("Enter")
        done(page, f"{CHAT}[{turn}]")
        assert page.run("document.getElementById('text').value") == ""
    assert prompt(0) < prompt(1) < prompt(2)
    first = prompt(0)
    page.run("document.getElementById('new-chat').click()")
    assert page.run(f"{CHAT}.length") == 0 and page.run("document.activeElement.id") == "text"
    page.write("three one four")
    page.press("Enter")
    done(page, f"{CHAT}[0]")
    assert prompt(0) == first


def test_a_long_answer_shows_how_far_it_is_and_stops(model: Path) -> None:
    with served(model, ENDLESS) as (url, _), Browser() as page:
        opened(page, url)
        page.run("document.getElementById('text').focus()")
        page.write("one")
        page.press("Enter", modifiers=2)
        page.until("/forward passes/.test(document.getElementById('clock').textContent)")
        page.run("document.getElementById('stop').click()")
        page.until("document.getElementById('state').value == 'Stopped'")
        assert page.run(f"{ANSWER}.dataset.state") == "stopped" and page.run("document.getElementById('stop').hidden")
        page.run("document.getElementById('go').click()")
        page.until("document.body.dataset.state == 'decoding'")
        page.press("Escape")
        page.until("document.getElementById('state').value == 'Stopped'")
        assert page.errors == []


def test_what_is_refused_is_said(page: Browser) -> None:
    do(page, "speak", text=" ")
    page.until("document.body.dataset.state == 'error'")
    assert page.run("document.getElementById('state').value") == "The text is empty; type one"
    assert page.run(ANSWER) is None
    refused_was_logged(page)


def test_text_stays_text(page: Browser) -> None:
    attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    do(page, "speak", text=attack)
    done(page)
    assert attack in page.run(f"{ANSWER}.querySelector('.asked').textContent")
    assert page.run("document.querySelectorAll('#answers img, #answers script').length") == 0
    assert page.run("document.title") == "Text-to-Talk"


def test_nothing_is_shown_before_it_works(page: Browser, url: str) -> None:
    static = "fetch('./').then((it) => it.text()).then((it) => new DOMParser().parseFromString(it, 'text/html'))"
    assert page.run(f"{static}.then((it) => it.querySelector('main').hidden && !it.getElementById('loading').hidden)")
    assert page.run("!document.querySelector('main').hidden && document.getElementById('loading').hidden")
    page.call("Network.enable")
    page.call("Network.setBlockedURLs", urls=["*/model"])
    page.open(url)
    page.until("/cannot be shown/.test(document.getElementById('loading').textContent)")
    assert page.run("document.querySelector('main').hidden")
    page.errors.clear()  # of the address that was blocked


@pytest.mark.parametrize("task", ["speak", "transcribe", "chat"])
def test_all_can_be_reached_by_keyboard_and_has_a_name(page: Browser, task: str) -> None:
    do(page, task, text="three one four")
    if task == "transcribe":
        page.until("document.body.dataset.state == 'error'")  # there is no recording
        refused_was_logged(page)
    else:
        done(page, ANSWER if task == "speak" else f"{CHAT}[0]")
    page.run("document.activeElement.blur()")
    wanted = (
        "[...document.querySelectorAll('button, input, select, textarea, summary, a')].filter((it) => !it.disabled && it.checkVisibility()"
        " && !it.closest('.tasks'))"
    )
    page.run(f"window.wanted = new Set({wanted})")
    for _ in range(60):
        page.press("Tab")
        page.run("wanted.delete(document.activeElement)")
    assert page.run("[...wanted].map((it) => it.outerHTML)") == []
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    needing = {
        "button",
        "textbox",
        "combobox",
        "slider",
        "spinbutton",
        "checkbox",
        "radio",
        "link",
        "image",
        "log",
        "radiogroup",
    }
    for node in nodes:
        if not node["ignored"] and node["role"]["value"] in needing:
            assert node["name"]["value"].strip(), node


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_stand_out_and_fit_a_telephone(page: Browser, scheme: str) -> None:
    page.look(width=360, height=800, scheme=scheme)
    for task, card in (("speak", ANSWER), ("chat", f"{CHAT}[0]")):
        do(page, task, text="three one four")
        done(page, card)
        page.run(f"{card}.querySelector('.attention').open = true")
        page.until(f"{card}.querySelectorAll('.legend li').length > 0")
        assert page.run(CONTRAST) == []
        assert page.run("document.documentElement.scrollWidth") <= 360
    do(page, "speak", text=" ")
    page.until("document.body.dataset.state == 'error'")
    assert page.run(CONTRAST) == []
    refused_was_logged(page)


def test_a_browser_leaves_nothing_behind(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the test fails, and where it does not come up."""

    def fail() -> None:
        with Browser() as page:
            page.open(url)
            assert list(tmp_path.glob("chromium-*/*"))
            raise ZeroDivisionError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(browser, "FLAGS", ("--version",))
    with pytest.raises((AssertionError, OSError)):
        Browser()
    assert list(tmp_path.iterdir()) == []
