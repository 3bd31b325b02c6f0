"""Flags that commands of data_prep share: one meaning, one help, wrong numbers refused before anything is read."""

import pytest

from data_prep.__main__ import main

NEEDED = {
    "encode": "--manifest M --codec C --out O",
    "compose": "--codes C --template asr --tokenizer T --out O",
    "import": "--source S --tokenizer T --num-codes 4 --out O",
    "pack": "--samples S --seq-len 8 --out O",
    "utterances": "--manifest M --out O --count 1",
    "group": "--manifest M --by chapter --out O",
    "manifest": "--reader table --source S --out O",
}
WRONG = [(name, "--max-errors", "-1") for name in NEEDED] + [
    (name, "--part-size", "0") for name in ("encode", "import")
]


@pytest.mark.parametrize(("command", "flag", "value"), [*WRONG, ("encode", "--part-size", "1e3")])
def test_a_number_that_cannot_be_is_refused_by_its_flag(
    command: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, *NEEDED[command].split(), flag, value])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: " in said and said.endswith(("is needed", "is no whole number"))
