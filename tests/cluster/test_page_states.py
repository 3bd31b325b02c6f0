"""What a user does on the page while something else goes on: nothing is lost, sent unmeant, unseen, or told wrongly."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.browser import Browser
from tests.cluster.page import ANSWER, CHAT, CONTRAST, HELD, WITHOUT_WEBM, do, done, opened, record, refused_was_logged
from tests.tiny_model import RATE

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

SLOWLY = """
const starts = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at) {
  this.playbackRate.value = 0.005;
  starts.call(this, at);
};
"""
"""What a browser runs so that a span sounds for minutes."""
LONGEST = """
[...document.querySelectorAll('.reply .span')].reduce((long, it) => (parseFloat(it.textContent) > parseFloat(long.textContent) ? it : long))
"""


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


def test_what_is_prepared_while_a_chat_answers_stays_and_the_page_tells_of_both(page: Browser, tmp_path: Path) -> None:
    begin(page)
    page.run("document.getElementById('text').value = 'and two'")
    page.choose_file("#file", wav(tmp_path / "next.wav"))
    for give in ("next", "rest"):
        assert page.run("document.body.dataset.state") == "decoding" and value(page, "state") == "Decoding"
        assert page.run("document.getElementById('template').disabled")  # another one begins a new chat
        page.run(f"held.{give}()")
        page.until(f"{CHAT}.length == 1")
    assert done(page, f"{CHAT}[0]")
    assert (
        value(page, "text") == "and two" and page.run("document.getElementById('clip-name').textContent") == "next.wav"
    )
    assert not page.run("document.getElementById('template').disabled")
    assert page.run(f"{CHAT}[0].getAttribute('aria-label')") == "You: three one four"


def test_a_recording_that_is_too_large_is_told_beside_it(page: Browser, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(bytes(20 * 2**20 + 1))
    page.run("document.querySelector('input[value=transcribe]').click()")
    page.choose_file("#file", path)
    told = "document.getElementById('clip-told').value"
    page.until(told)
    assert page.run(told) == "long.wav is larger than 20 MB; choose a shorter recording"
    assert page.run("document.getElementById('clip').hidden") and page.run(CONTRAST) == []
    record(page)
    assert page.run(told) == ""
    page.choose_file("#file", path)
    page.until(told)
    assert (
        page.run("document.getElementById('clip-name').textContent") == "recording.webm"
    )  # what is refused takes nothing's place
    click(page, "remove")
    page.run("Blob.prototype.__defineGetter__('size', () => 2 ** 30)")
    listening(page)
    wait(page, 0.5)
    click(page, "record")
    page.until("document.getElementById('clip-told').value.startsWith('recording.webm is larger than 20 MB')")
    assert shown(page)[2:] == ["Record", 0]


def test_nothing_is_recorded_unseen(page: Browser) -> None:
    page.run("document.querySelector('input[value=chat]').click()")
    page.run("document.getElementById('record').click()")
    page.until("document.getElementById('clip-told').value == 'Recording'")
    page.run("new Promise((done) => setTimeout(done, 500))")
    page.run("document.querySelector('input[value=speak]').click()")
    page.until("document.getElementById('clip-name').textContent == 'recording.webm'")
    page.run("document.querySelector('input[value=chat]').click()")
    assert (
        page.run("document.getElementById('record').textContent + document.getElementById('clip-told').value")
        == "Record"
    )


def test_a_file_chosen_while_it_records_takes_the_place_of_the_recording(page: Browser, tmp_path: Path) -> None:
    choose(page, "chat")
    listening(page)
    page.choose_file("#file", wav(tmp_path / "chosen.wav"))
    choose(page, "speak")
    choose(page, "chat")
    wait(page)
    assert shown(page) == ["chosen.wav", "", "Record", 0]


@pytest.mark.parametrize("task", ["speak", "chat"])
def test_a_microphone_that_is_given_too_late_is_left_alone(page: Browser, task: str) -> None:
    """Another task is chosen while it is asked for, or the button pressed again."""
    page.run(MICROPHONE)
    page.run("window.asks = true")
    choose(page, "chat")
    click(page, "record")
    page.until("window.grant")
    assert value(page, "clip-told") == "Waiting for the microphone"
    click(page, "record") if task == "chat" else choose(page, task)
    page.run("window.grant()")
    wait(page)
    assert page.run("streams.length") == 1 and shown(page) == ["", "", "Record", 0]
    page.run("window.asks = false")
    choose(page, "chat")
    record(page)
    assert shown(page) == ["recording.webm", "", "Record", 0]


def test_who_types_while_the_microphone_is_asked_for_goes_on_typing(page: Browser) -> None:
    page.run(MICROPHONE)
    page.run("window.asks = true")
    choose(page, "chat")
    click(page, "record")
    page.until("window.grant")
    page.run("document.getElementById('text').focus()")
    page.run("window.grant()")
    page.until("document.getElementById('clip-told').value == 'Recording'")
    assert page.run("document.activeElement.id") == "text"


@pytest.mark.parametrize("task", ["transcribe", "chat"])
@pytest.mark.parametrize("is_wave", [False, True], ids=["webm", "wav"])
def test_what_is_being_recorded_is_sent_with_the_question(page: Browser, url: str, task: str, is_wave: bool) -> None:
    if is_wave:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_WEBM)
        opened(page, url)
    choose(page, task)
    listening(page)
    wait(page, 0.5)
    do(page, task, text="three one four", seed=3)
    card = ANSWER if task == "transcribe" else f"{CHAT}[0]"
    done(page, card)
    asked = page.run(f"{card}.querySelector('.asked').textContent")
    assert ("recording.wav" if is_wave else "recording.webm") in asked and page.run("live()") == 0


def reading(page: Browser, url: str) -> None:
    """A page that makes recordings WAV, and has made one when read() is called."""
    page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_WEBM)
    opened(page, url)
    slow = (
        "const reads = OfflineAudioContext.prototype.decodeAudioData; OfflineAudioContext.prototype.decodeAudioData ="
    )
    page.run(
        f"{slow} async function (it) {{ await new Promise((done) => (window.read = done)); return reads.call(this, it); }}; 0"
    )


def test_a_recording_that_is_being_read_says_so(page: Browser, url: str) -> None:
    reading(page, url)
    choose(page, "chat")
    listening(page)
    wait(page, 0.5)
    click(page, "record")
    page.until("window.read")
    click(page, "record")  # does nothing
    assert shown(page) == ["", "Reading the recording", "Record", 0]
    page.run("window.read()")
    page.until("document.getElementById('clip-name').textContent")
    assert shown(page) == ["recording.wav", "", "Record", 0]


@pytest.mark.parametrize("task", ["transcribe", "chat"])
def test_a_question_is_what_it_was_when_it_was_sent(page: Browser, url: str, task: str) -> None:
    """Whatever is typed, and whichever task is chosen, while its recording is read."""
    reading(page, url)
    page.run(HELD)
    choose(page, task)
    listening(page)
    wait(page, 0.5)
    do(page, task, text="three one four", seed=3)
    page.until("window.read")
    choose(page, "speak")
    page.run("document.getElementById('text').value = 'and two'")
    page.until("(window.read(), window.held)")  # twice: as WAV, and to be shown
    page.run("held.rest()")
    card = ANSWER if task == "transcribe" else f"{CHAT}[0]"
    done(page, card)
    text = "" if task == "transcribe" else "three one four · "
    assert page.run(f"{card}.querySelector('.asked span').textContent") == f"{text}recording.wav"
    assert value(page, "text") == "and two"


def test_a_question_whose_recording_is_being_read_can_be_stopped(page: Browser, url: str) -> None:
    reading(page, url)
    choose(page, "chat")
    listening(page)
    wait(page, 0.5)
    do(page, "chat", text="three one four")
    page.until("window.read")
    page.press("Escape")
    page.until("document.getElementById('state').value == 'Stopped'")
    assert value(page, "text") == "three one four" and page.run(f"{CHAT}.length") == 0
    page.run("window.read()")
    page.until("document.getElementById('clip-name').textContent")
    assert shown(page) == ["recording.wav", "", "Record", 0]


def test_a_question_without_a_recording_waits_for_none(page: Browser, url: str) -> None:
    reading(page, url)
    choose(page, "chat")
    listening(page)
    wait(page, 0.5)
    do(page, "speak", text="three one four", seed=4)
    assert done(page).strip()


def test_a_recorder_that_fails_leaves_the_microphone_and_the_button(page: Browser) -> None:
    page.run(
        "const starts = MediaRecorder.prototype.start; MediaRecorder.prototype.start = () => { throw new Error('no encoder'); }; 0"
    )
    page.run(MICROPHONE)
    choose(page, "chat")
    click(page, "record")
    page.until("document.getElementById('clip-told').classList.contains('bad')")
    assert shown(page) == ["", "The microphone cannot be used: no encoder", "Record", 0]
    page.run("MediaRecorder.prototype.start = starts; 0")
    record(page)


def test_nothing_is_sent_where_what_was_being_recorded_fails(page: Browser, url: str) -> None:
    page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_WEBM)
    opened(page, url)
    page.run("OfflineAudioContext.prototype.decodeAudioData = () => Promise.reject(new Error('no')); 0")
    choose(page, "chat")
    listening(page)
    do(page, "chat", text="three one four")
    page.until("document.body.dataset.state == 'error'")
    assert value(page, "state") == "The recording failed, so nothing was sent"
    assert shown(page)[1:] == ["Nothing was recorded; try again", "Record", 0]
    assert page.run(f"{CHAT}.length") == 0 and value(page, "text") == "three one four"
    page.run("document.getElementById('text').dispatchEvent(new Event('input', { bubbles: true }))")
    assert value(page, "state") == "Ready"


def test_what_is_told_of_the_recording_stays_when_an_answer_comes(page: Browser, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(bytes(20 * 2**20 + 1))
    begin(page)
    page.choose_file("#file", path)
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert value(page, "clip-told").startswith("long.wav is larger")


def test_an_answer_does_not_sound_into_a_recording(page: Browser) -> None:
    begin(page)
    listening(page)
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert page.run(f"{CHAT}[0].querySelectorAll('.span').length") > 0 and sounding(page) == 0
    wait(page)
    assert shown(page) == ["", "Recording", "Stop recording", 1]
    assert page.run("document.querySelectorAll('[data-heard]').length") == 0


def test_a_file_is_sent_as_it_was_chosen(page: Browser, tmp_path: Path) -> None:
    path = wav(tmp_path / "said.wav")
    choose(page, "transcribe")
    page.choose_file("#file", path)
    page.until("document.querySelector('#clip-sound .length')?.textContent == '1.00 s'")
    wav(path, 2.0)
    os.utime(path, (0, 0))  # a browser sees by the time whether a file has changed
    do(page, "transcribe", seed=2)
    assert done(page).strip()
    page.run("document.getElementById('remove').click()")
    page.choose_file("#file", tmp_path)  # a folder, as it may be dropped
    page.until("document.getElementById('clip-told').value")
    assert value(page, "clip-told").endswith(" cannot be read; choose another recording")


def test_what_was_missing_is_not_missed_any_more(page: Browser) -> None:
    do(page, "transcribe")
    page.until("document.body.dataset.state == 'error'")
    refused_was_logged(page)
    record(page)
    assert value(page, "state") == "Ready"


def test_playing_can_be_turned_off_at_any_time(page: Browser) -> None:
    page.run(SLOWLY)
    begin(page, "speak")
    page.run("held.next()")
    click(page, "aloud")
    page.run("held.rest()")
    done(page)
    assert page.run(f"{ANSWER}.querySelectorAll('.span').length") > 1 and sounding(page) == 0
    page.run(f"{LONGEST}.click()")
    page.until("document.querySelector('.sounding')")
    click(page, "aloud")
    click(page, "aloud")
    page.until("!document.querySelector('.sounding')")


def test_one_thing_sounds_at_a_time_and_nothing_unseen(page: Browser, tmp_path: Path) -> None:
    page.run(SLOWLY)
    begin(page)
    page.run("held.next()")
    page.choose_file("#file", wav(tmp_path / "next.wav", 20))
    page.until("document.querySelector('#clip-sound .length')?.textContent == '20.00 s'")
    page.run("document.querySelector('#clip-sound .play').click()")
    page.until("document.querySelector('#clip-sound .is-playing')")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert sounding(page) == 1
    page.run(f"{LONGEST}.click()")
    page.until(f"{CHAT}[0].querySelector('.sounding')")
    assert sounding(page) == 1
    page.run("document.querySelector('#clip-sound .play').click()")
    page.until("document.querySelector('#clip-sound .is-playing')")
    choose(page, "speak")
    page.until("[...document.querySelectorAll('audio')].every((it) => it.paused)")
    page.run("window.held = null")
    do(page, "speak", text="three one four", seed=4)
    page.until("window.held")
    page.run("held.next()")
    choose(page, "chat")
    page.run("held.rest()")
    done(page)
    assert sounding(page) == 0


def test_a_chat_question_asked_in_vain_stands_in_the_form_again(page: Browser) -> None:
    choose(page, "chat")
    record(page)
    begin(page)
    page.run("held.next()")
    page.until(f"{CHAT}.length == 1")
    assert value(page, "text") == "" and page.run("document.getElementById('clip').hidden")
    page.run(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true, isComposing: true }))"
    )
    wait(page, 0.1)
    assert value(page, "state") == "Decoding"  # that key was the input method's
    page.press("Escape")
    page.until("document.getElementById('state').value == 'Stopped'")
    assert value(page, "text") == "three one four"
    assert page.run("document.getElementById('clip-name').textContent") == "recording.webm"
    click(page, "new-chat")
    assert page.run(f"{CHAT}.length") == 0


@pytest.mark.parametrize("is_typed", [True, False])
def test_a_question_asked_in_vain_is_not_mixed_with_the_next(page: Browser, tmp_path: Path, is_typed: bool) -> None:
    if is_typed:
        page.choose_file("#file", wav(tmp_path / "said.wav"))
    begin(page)
    page.run("held.next()")
    page.until(f"{CHAT}.length == 1 && document.getElementById('text').value == ''")
    if is_typed:
        page.run("document.getElementById('text').value = 'and two'")
    else:
        page.choose_file("#file", wav(tmp_path / "next.wav"))
    page.press("Escape")
    page.until("document.getElementById('state').value == 'Stopped'")
    name = page.run("document.getElementById('clip-name').textContent")
    assert (value(page, "text"), name) == (("and two", "") if is_typed else ("", "next.wav"))


def test_the_focus_at_a_recording_that_was_sent_goes_to_its_button(page: Browser, tmp_path: Path) -> None:
    page.choose_file("#file", wav(tmp_path / "said.wav"))
    page.until("document.querySelector('#clip-sound .play')?.disabled === false")
    begin(page)
    page.run("document.querySelector('#clip-sound .play').focus()")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert page.run("document.activeElement.id") == "record"


def test_a_first_line_of_a_chat_leaves_what_is_typed_for_another_task(page: Browser) -> None:
    begin(page)
    choose(page, "speak")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert value(page, "text") == "three one four"


def test_an_answer_ends_with_its_last_line(page: Browser) -> None:
    """Whatever becomes of the connection: the lines of this one are never closed."""
    begin(page)
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    page.press("Escape")
    assert value(page, "state") == "Ready" and page.run(f"{CHAT}[0].dataset.state") == "done"


def test_a_question_that_waits_for_its_turn_says_so(page: Browser) -> None:
    begin(page)
    page.run("held.next()")
    page.run(r"held.give('\n')")
    page.until("document.getElementById('state').value == 'Waiting for its turn'")
    page.run("held.next()")
    page.until("document.getElementById('state').value == 'Decoding'")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")


def test_where_stop_was_nothing_can_be_pressed(page: Browser) -> None:
    begin(page)
    page.run("held.next()")
    page.until(f"{CHAT}.length == 1")
    page.run("window.stopped = document.getElementById('stop').getBoundingClientRect(); 0")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    page.run("window.lower = document.getElementById('go').getBoundingClientRect(); 0")
    under = "document.elementFromPoint(stopped.x + stopped.width / 2, lower.y + lower.height / 2)"
    assert page.run(f"{under}.closest('button, label, a, summary')") is None


def test_a_stopped_answer_can_be_heard(page: Browser) -> None:
    begin(page, "speak")
    while not page.run("document.querySelectorAll('#answers .span').length"):
        page.run("held.next()")
    page.press("Escape")
    page.until("document.getElementById('state').value == 'Stopped'")
    assert not page.run(f"{ANSWER}.querySelector('.play').disabled")
    assert page.run(f"{ANSWER}.querySelector('.sound a').download") == "speak.wav"
    player = f"{ANSWER}.querySelector('audio')"
    page.until(f"{player}.duration > 0")


@pytest.mark.parametrize(("name", "typed", "sends"), [("temperature", "0.33", True), ("temperature", "-1", False)])
def test_a_number_out_of_its_range_is_shown(page: Browser, name: str, typed: str, sends: bool) -> None:
    do(page, "speak", text="three one four", seed=4, **{name: typed})
    if sends:
        done(page)
        return
    page.until("document.body.dataset.state == 'error'")
    assert value(page, "state").startswith("Temperature: ") and page.run("document.activeElement.id") == name
    assert page.run("document.getElementById('decoding').open") and page.run(ANSWER) is None


def test_what_cannot_be_reached_is_said_and_asked_for_again(page: Browser) -> None:
    page.call("Network.enable")
    page.call("Network.setBlockedURLs", urls=["*/attention", "*/speech.wav"])
    do(page, "speak", text="three one four", seed=4)
    done(page)
    unreached = "The server cannot be reached; is it still running?"
    page.until(f"{ANSWER}.querySelector('.remark').textContent")
    assert page.run(f"{ANSWER}.querySelector('.remark').textContent") == unreached
    assert page.run(f"{ANSWER}.querySelector('.sound a').download") == "speak.wav"  # its stretches, joined
    details = f"{ANSWER}.querySelector('.attention')"
    page.run(f"{details}.open = true")
    page.until(f"{ANSWER}.querySelector('.row-told').value == {json.dumps(unreached)}")
    page.call("Network.setBlockedURLs", urls=[])
    for is_open in ("false", "true"):
        page.run(f"{details}.open = {is_open}")
        wait(page, 0.1)
    page.until(f"{ANSWER}.querySelectorAll('.legend li').length == 5")
    page.errors.clear()  # of the addresses that were blocked


def test_a_page_without_sound_says_so_each_time(page: Browser) -> None:
    page.run(
        "const works = window.AudioContext; window.AudioContext = function () { throw new Error('no sound here'); }; 0"
    )
    for _ in range(2):
        do(page, "speak", text="three one four", seed=4)
        page.until("document.getElementById('state').value == 'No sound here'")
    page.run("window.AudioContext = works; 0")
    do(page, "speak", text="three one four", seed=4)
    assert done(page).strip()


def test_a_file_dropped_beside_the_box_does_not_take_the_place_of_the_page(page: Browser) -> None:
    dropped = (
        "((files) => { const data = new DataTransfer(); if (files) data.items.add(new File(['x'], 'x.wav'));"
        " const event = new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: data });"
        " document.body.dispatchEvent(event); return event.defaultPrevented; })"
    )
    assert page.run(f"{dropped}(true)") and not page.run(f"{dropped}(false)")  # text may be dropped into its field


def test_the_focus_stays_at_a_recording_and_its_status_is_always_there(page: Browser) -> None:
    """A second Enter removes nothing; a live region that comes with its text is not read out."""

    def regions() -> int:
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        return sum(not node["ignored"] and node["role"]["value"] == "status" for node in nodes)

    choose(page, "chat")
    number = regions()
    page.run("document.getElementById('record').focus()")
    page.press("Enter")
    page.until("document.getElementById('clip-told').value == 'Recording'")
    assert regions() == number
    wait(page, 0.5)
    page.press("Enter")
    page.until("document.getElementById('clip-name').textContent == 'recording.webm'")
    assert page.run("document.activeElement.id") == "clip-name"
    page.run("document.getElementById('remove').focus()")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "record"
