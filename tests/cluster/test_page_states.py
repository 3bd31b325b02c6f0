"""What a user does on the page while an answer is made: nothing is lost, sent unmeant, sounding unseen, or told wrongly."""

import json
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.cluster.page import ANSWER, CHAT, begin, choose, click, do, done, record, sounding, value, wait, wav

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


def test_any_number_in_its_range_is_sent(page: Browser) -> None:
    do(page, "speak", text="three one four", seed=4, temperature="0.33")
    done(page)


@pytest.mark.parametrize(("name", "typed"), [("temperature", "-1"), ("steps", "1.5"), ("seed", "-1")])
def test_a_number_that_cannot_be_is_shown(page: Browser, name: str, typed: str) -> None:
    do(page, "speak", text="three one four", **{name: typed})
    page.until("document.body.dataset.state == 'error'")
    assert value(page, "state").startswith(f"{name.title()}: ") and page.run("document.activeElement.id") == name
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
