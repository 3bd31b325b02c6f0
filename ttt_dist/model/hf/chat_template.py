"""The templates of training as a Jinja chat template: `apply_chat_template` then gives the prompts that the model has learnt.

    tokenizer.apply_chat_template([{"role": "user", "content": "three one four"}], task="tts", add_generation_prompt=True)

`task` names one of the model's templates, and puts its system turn first. Speech stands in a content as written tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt_dist.sequence.template_form import AUDIO, NAMED_TEXT, SYSTEM, TEXT_TURNS, TURNS, USER, Turn
from ttt_dist.sequence.templates import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JINJA = """{%- set tasks = TASKS -%}
{%- if task is defined and task -%}
{%- if task not in tasks -%}{{- raise_exception("task: choose among " ~ tasks | join(", ")) -}}{%- endif -%}
{%- set messages = [{"role": "system", "content": tasks[task]}] + messages -%}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content | trim -%}
{{- "IM_START" ~ message.role ~ "\\n" ~ ("" if content.startswith("BEGIN_OF_AUDIO") else "SPACE") ~ content ~ "IM_END" -}}
{%- if not loop.last or add_generation_prompt -%}{{- "\\n" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "IM_STARTassistant\\n" -}}{%- endif -%}"""
TEXT = "Hello there, one two."
CHAT = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "No?"}]


def chat_template(backend: "Tokenizer", pieces: Mapping[int, str], writer: ChatTemplate) -> str | None:
    """The Jinja text under which an exported tokenizer gives the ids of `writer`, compared; None where there is none.

    `pieces` is how the special tokens and codes are written. None too where training took the tokenizer's own chat template.
    """
    if writer.settings.chat_template != "chatml":
        return None
    forms, layout = writer.settings.forms(), writer.layout
    tasks = {name: text for name, turns in forms.items() if (text := _system_text(turns))}
    written = JINJA
    for name in ("im_start", "im_end", "begin_of_audio"):
        written = written.replace(name.upper(), pieces[layout.special_ids[name]])
    prompts = [*_prompts(writer, pieces, tasks)]
    # Models of sentencepiece begin each stretch of text with a space that others do not have.
    spaced = (written.replace("SPACE", space) for space in ("", " "))
    candidates = [jinja.replace("TASKS", json.dumps(tasks, ensure_ascii=False)) for jinja in spaced]
    return next((jinja for jinja in candidates if _gives(backend, jinja, prompts)), None)


def _system_text(turns: Sequence[Turn]) -> str | None:
    """The system turn of a template that goes on with nothing but what it is given, else None."""
    if len(turns) < 2 or turns[0].role != SYSTEM or any(piece.is_field for piece in turns[0].content(None)):
        return None
    if turns[1].role == USER:
        pieces = turns[1].content(None)
        if [piece.is_field and piece.value in (AUDIO, NAMED_TEXT, "text") for piece in pieces] != [True]:
            return None
    elif turns[1].role not in (TURNS, TEXT_TURNS):
        return None
    return "".join(piece.value for piece in turns[0].content(None)).strip()


def _prompts(
    writer: ChatTemplate, pieces: Mapping[int, str], tasks: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Variables of a rendering, and the ids that training had for the same."""
    layout = writer.layout
    spoken = "".join(pieces[number] for number in (layout.begin_of_audio, layout.first_code, layout.end_of_audio))
    yield {"messages": CHAT}, writer.chat(CHAT).ids.tolist()
    for name in tasks:
        second = writer.settings.forms()[name][1]
        hears = second.role == USER and second.content(None)[0].value == AUDIO
        entry = {"text": TEXT, "audio": "given", "turns": [{"role": USER, "text": TEXT}]}
        ids = writer.prompt(name, entry, [np.zeros(1, dtype=np.int32)] if hears else [])
        messages = [{"role": USER, "content": spoken if hears else TEXT}]
        yield {"messages": messages, "task": name, "add_generation_prompt": True}, ids.tolist()


def _gives(backend: "Tokenizer", jinja: str, prompts: Sequence[tuple[dict[str, Any], list[int]]]) -> bool:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(jinja)
    return all(backend.encode(template.render(values), add_special_tokens=False).ids == ids for values, ids in prompts)
