"""What tests do on the served page, and where they find what it shows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.browser import Browser
from tests.tiny_model import RATE
from ttt_dist.config.decode import DecodeSettings

ANSWER = "document.querySelector('#answers article')"
CHAT = "[...document.querySelectorAll('#thread article')]"
ENDLESS = DecodeSettings(max_text=100_000, max_codes=100_000)

HELD = """
const asIs = window.fetch;
window.fetch = async (...given) => {
  const response = await asIs(...given);
  if (given[0] !== "answers" || !response.ok) return response;
  const lines = (await response.text()).split(/(?<=\\n)/).filter(Boolean);
  const body = new ReadableStream({ start(stream) {
    const give = (line) => stream.enqueue(line);
    window.held = { give, next: (count = 1) => lines.splice(0, count).forEach(give), rest: () => lines.splice(0).forEach(give) };
    given[1].signal.addEventListener("abort", () => stream.error(given[1].signal.reason));
  } });
  return new Response(body.pipeThrough(new TextEncoderStream()));
};
"""
"""What a browser runs so that the lines of an answer come when a test says so: held.next(), held.rest(), or others by held.give()."""

WITHOUT_WEBM = """
const original = window.fetch;
window.fetch = async (...given) => {
  const response = await original(...given);
  if (given[0] !== "model") return response;
  const about = await response.json();
  return new Response(JSON.stringify({ ...about, formats: about.formats.filter((name) => name !== "WebM") }));
};
"""

MICROPHONE = """
const granted = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.streams = [];
navigator.mediaDevices.getUserMedia = async (what) => {
  if (window.asks) await new Promise((done) => (window.grant = done));
  const stream = await granted(what);
  streams.push(stream);
  return stream;
};
window.live = () => streams.flatMap((it) => it.getTracks()).filter((it) => it.readyState === "live").length;
"""
"""What a browser runs so that tests know how many microphones are on, and with `asks` grant them by grant()."""

CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (it) => parse(getComputedStyle(it).backgroundColor);
  const behind = (it) => (!it ? [255, 255, 255] : colour(it)[3] === 0 ? behind(it.parentElement) : colour(it));
  const bad = [];
  for (const it of document.querySelectorAll('body *')) {
    const isField = it.matches('input:not([type=range]), select, textarea') && it.value;
    const isText = isField || [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!isText || !it.checkVisibility() || it.closest('[disabled], .unseen')) continue;
    const [low, high] = [parse(getComputedStyle(it).color), behind(it)].map(luminance).sort((x, y) => x - y);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) bad.push([it.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
})()
"""
"""What stands out too little from what is behind it."""


def opened(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until("document.getElementById('state').value == 'Ready'")


def do(page: Browser, task: str, **fields: str | int) -> None:
    """Choose a task, fill in fields and press the button."""
    page.run(f"document.querySelector('input[value={task}]').click()")
    for name, value in fields.items():
        page.run(f"document.getElementById('{name}').value = {json.dumps(value)}")
    page.run("document.getElementById('go').click()")


def done(page: Browser, card: str = ANSWER) -> str:
    """Wait for the answer; the text of it."""
    page.until(f"{card}?.dataset.state == 'done' && document.body.dataset.state == 'idle'")
    return str(page.run(f"[...{card}.querySelector('.reply').childNodes].map((n) => n.data ?? '').join('')"))


def refused_was_logged(page: Browser) -> None:
    """Browsers log every answer of this kind, some time."""
    while not page.errors:
        page.run("new Promise((done) => setTimeout(done, 20))")
    assert "400" in page.errors.pop()


def record(page: Browser) -> None:
    """Half a second of what the browser takes for a microphone."""
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('clip-told').value == 'Recording'")
    page.run("new Promise((done) => setTimeout(done, 500))")
    page.run("document.getElementById('record').click()")
    page.until("parseFloat(document.querySelector('#clip-sound .length')?.textContent) > 0.2")


def value(page: Browser, name: str) -> Any:
    """What a field says."""
    return page.run(f"document.getElementById('{name}').value")


def click(page: Browser, name: str) -> None:
    page.run(f"document.getElementById('{name}').click()")


def choose(page: Browser, task: str) -> None:
    page.run(f"document.querySelector('input[value={task}]').click()")


def wait(page: Browser, seconds: float = 0.4) -> None:
    """For what is not to happen."""
    page.run(f"new Promise((done) => setTimeout(done, {1000 * seconds}))")


def wav(path: Path, seconds: float = 1.0) -> Path:
    soundfile.write(path, np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 0.1, RATE)
    return path


def begin(page: Browser, task: str = "chat", **fields: str | int) -> None:
    """Ask something, of whose answer no line has come yet."""
    page.run(HELD)
    do(page, task, text="three one four", seed=3 if task == "chat" else 4, **fields)
    page.until("window.held")


def listening(page: Browser) -> None:
    """Press the button to record, and wait until it does."""
    page.run(MICROPHONE)
    click(page, "record")
    page.until("document.getElementById('clip-told').value == 'Recording'")


def shown(page: Browser) -> list[Any]:
    """Of the recording: its name, what is told, the button, how many microphones are on."""
    return list(
        page.run(
            "['clip-name', 'clip-told', 'record'].map((it) => document.getElementById(it).textContent.trim()).concat(live())"
        )
    )


def sounding(page: Browser) -> int:
    """How many things sound."""
    return int(
        page.run(
            "document.querySelectorAll('.sounding').length + [...document.querySelectorAll('audio')].filter((it) => !it.paused).length"
        )
    )
