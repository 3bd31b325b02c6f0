"""A program of the user's, as `--decoder-command` and `--recogniser-command` run it."""

import sys
from pathlib import Path

import pytest

from ttt_dist.audio.command import Command
from ttt_dist.util.errors import UserError

EXAMPLE = "decode {codes} {wav}"


def command(text: str) -> Command:
    return Command("--decoder-command", text, ["{codes}", "{wav}"], EXAMPLE)


def test_names_stand_for_files_wherever_they_are(tmp_path: Path) -> None:
    """Within a word too, several times; paths with spaces stay one argument, and no shell looks at them."""
    script = tmp_path / "write.py"
    script.write_text("import sys; open(sys.argv[2], 'w').write('|'.join(sys.argv[1:]))")
    out = tmp_path / "a b;$HOME.txt"
    decode = command(f"'{sys.executable}' {script} --codes={{codes}} {{wav}} 'two words' {{codes}}")
    assert decode.program == sys.executable
    decode.run({"{codes}": "c d", "{wav}": str(out)})
    assert out.read_text() == f"--codes=c d|{out}|two words|c d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode {codes}", r"--decoder-command: lacks \{wav\}; write it as 'decode \{codes\} \{wav\}'"),
        ("{codes} {wav}", r"lacks \{codes\}"),  # the program itself stands for no file
        ("decode '{codes} {wav}", "No closing quotation; close the quotes"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        command(text)


def test_failures_say_what_the_program_said() -> None:
    files = {"{codes}": "c", "{wav}": "w"}
    loud = command(f"{sys.executable} -c \"import sys; sys.exit('first\\nno such voice')\" {{codes}} {{wav}}")
    with pytest.raises(UserError, match=r"ended with status 1 \(no such voice\); run it by hand"):
        loud.run(files)
    mute = command(f'{sys.executable} -c "import sys; sys.exit(3)" {{codes}} {{wav}}')
    with pytest.raises(UserError, match=r"ended with status 3 \(without a message\)"):
        mute.run(files)
    with pytest.raises(UserError, match=r"/no/program cannot be run \(No such file or directory\)"):
        command("/no/program {codes} {wav}").run(files)
