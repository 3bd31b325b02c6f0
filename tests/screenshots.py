"""Pictures of the served page for docs/serving.md, with a trained model.

python -m tests.screenshots --model runs/demo/export --recording demo_speech/eight_alice_0.flac --out docs/images
"""

import argparse
import json
from pathlib import Path

from tests.browser import Browser
from tests.served import served
from ttt_dist.config.decode import folder_settings

CARDS = "[...document.querySelectorAll('article')]"


def ask(page: Browser, task: str, number: int, text: str = "", recording: Path | None = None) -> None:
    """Ask, and wait for answer `number`, counted from 1, with all that it shows."""
    page.run(f"document.querySelector('input[value={task}]').click()")
    if recording:
        page.choose_file("#file", recording)
        page.until("document.querySelector('#clip-sound .length')?.textContent.endsWith('s')")
    page.run(f"document.getElementById('text').value = {json.dumps(text)}")
    page.run("document.getElementById('go').click()")
    page.until(
        f"{CARDS}.length == {number} && {CARDS}.every((it) => it.dataset.state == 'done') && document.body.dataset.state == 'idle'"
    )
    page.until(f"{CARDS}.every((it) => !it.querySelector('.sound a') || !it.querySelector('.sound a').hidden)")
    page.until("!document.querySelector('.sounding')")


def shoot(page: Browser, url: str, out: Path, recording: Path) -> None:
    """Speaking in the light, a chat in the dark, and both on a telephone."""
    ready = "document.getElementById('state').value == 'Ready'"
    page.look(1000, 1240, "light")
    page.open(url)
    page.until(ready)
    ask(page, "speak", 1, "three one four")
    page.run(f"{CARDS}[0].querySelector('.attention').open = true")
    page.until(f"{CARDS}[0].querySelectorAll('.legend li').length > 0")
    page.run(
        f"{CARDS}[0].querySelector('.attention canvas').dispatchEvent(new KeyboardEvent('keydown', {{ key: 'End' }}))"
    )
    page.screenshot(out / "page-speak.png")
    page.look(1000, 1080, "dark")
    page.open(url)
    page.until(ready)
    ask(page, "chat", 1, "", recording)
    ask(page, "chat", 2, "and then")
    page.screenshot(out / "page-chat.png")
    page.look(390, 844, "dark")
    page.open(url)
    page.until(ready)
    ask(page, "transcribe", 1, "", recording)
    page.screenshot(out / "page-phone.png")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model folder")
    parser.add_argument("--recording", type=Path, required=True, help="what is said to it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with served(args.model.resolve(), folder_settings(args.model)) as (url, _), Browser() as page:
        shoot(page, url, args.out, args.recording.resolve())
        assert not page.errors, page.errors


if __name__ == "__main__":
    main()
