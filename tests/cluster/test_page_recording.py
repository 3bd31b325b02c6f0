"""The recording of the page, from the microphone or a file, whatever else goes on: none is lost, unseen, or sent with another question."""

import os
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.cluster.page import (
    ANSWER,
    CHAT,
    CONTRAST,
    HELD,
    MICROPHONE,
    WITHOUT_WEBM,
    begin,
    choose,
    click,
    do,
    done,
    listening,
    opened,
    record,
    refused_was_logged,
    shown,
    sounding,
    value,
    wait,
    wav,
)


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
    choose(page, "chat")
    listening(page)
    wait(page, 0.5)
    choose(page, "speak")
    page.until("document.getElementById('clip-name').textContent")
    choose(page, "chat")
    assert shown(page) == ["recording.webm", "", "Record", 0]


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


def test_the_focus_at_a_recording_that_was_sent_goes_to_its_button(page: Browser, tmp_path: Path) -> None:
    page.choose_file("#file", wav(tmp_path / "said.wav"))
    page.until("document.querySelector('#clip-sound .play')?.disabled === false")
    begin(page)
    page.run("document.querySelector('#clip-sound .play').focus()")
    page.run("held.rest()")
    done(page, f"{CHAT}[0]")
    assert page.run("document.activeElement.id") == "record"


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
