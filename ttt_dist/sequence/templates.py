"""Templates: how an entry of a manifest becomes a sample, for training and prompts alike (docs/method.md#tokens-and-layouts).

`TemplateSettings` says which templates there are and how speech is interleaved; users give them in a YAML file.
`ChatTemplate` renders entries with them, for one tokenizer and token layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttt_dist.config.reading import as_typed, build
from ttt_dist.config.section import Section
from ttt_dist.config.yaml_file import read_yaml
from ttt_dist.sequence import released_format, template_form
from ttt_dist.sequence.chat_markup import ChatML, OwnTemplate, end_of_turn
from ttt_dist.sequence.id_bytes import WIDTH, to_array
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.template_form import ASSISTANT, CHAT_ROLES, Turn
from ttt_dist.sequence.template_writer import Codes, ContentWriter, Entry, EntryWriter, Form
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout, extend
from ttt_dist.util.errors import UserError


@dataclass(kw_only=True)
class TemplateSettings(Section):
    """Saved with the samples and the exported model: a prompt must read as it did in training."""

    text_ratio: int = 13
    """Text tokens between spans."""
    audio_ratio: int = 26
    """Codes of every span but the last."""
    last_span: Literal["rest", "chunks"] = "rest"
    """What follows when the text has run out: one span of all codes that remain, or spans of `audio_ratio`."""
    chat_template: Literal["chatml", "tokenizer"] = "chatml"
    """Markup of the turns: ChatML, or the tokenizer's own chat template."""
    name_speaker: bool = False
    """Name the speaker in TTS prompts."""
    templates: dict[str, template_form.TemplateItems] = field(default_factory=template_form.built_in)
    """What each template writes (`ttt_dist.sequence.template_form`)."""

    def __post_init__(self) -> None:
        for name, value in (("text_ratio", self.text_ratio), ("audio_ratio", self.audio_ratio)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name}: is {value!r}; give a whole number, 1 or more")
        for name, choice, known in (
            ("last_span", self.last_span, ("rest", "chunks")),
            ("chat_template", self.chat_template, ("chatml", "tokenizer")),
        ):
            if choice not in known:
                raise UserError(f"{name}: is {choice!r}; choose {' or '.join(known)}")
        if not isinstance(self.name_speaker, bool):
            raise UserError(f"name_speaker: is {self.name_speaker!r}; write true or false")
        if not isinstance(self.templates, dict):
            raise UserError(
                f"templates: is {type(self.templates).__name__}; write names with a list of turns below each"
            )
        self.forms()

    def forms(self) -> dict[str, list[Turn]]:
        """The templates, read. Raises UserError naming the key that is wrong."""
        return {name: template_form.read_template(name, items) for name, items in self.templates.items()}

    def require(self, name: str) -> None:
        """Raise UserError unless there is a template `name`."""
        if name not in self.templates:
            raise UserError(f"no template '{name}': choose among {', '.join(self.templates)}, or add it in a file")

    def fixed_texts(self, names: Iterable[str]) -> list[str]:
        """What these templates write themselves, in every language: a tokenizer to be trained should know it."""
        forms = self.forms()
        contents = [content for name in names for turn in forms[name] for content in turn.contents.values()]
        texts = [piece.value.strip() for content in contents for piece in content if not piece.is_field]
        return [*dict.fromkeys(filter(None, texts)), *(role + "\n" for role in CHAT_ROLES), "\n"]

    def names_speaker(self, names: Iterable[str]) -> bool:
        """Whether prompts of one of these templates name the speaker."""
        forms = self.forms()
        pieces = (piece for name in names for turn in forms[name] for it in turn.contents.values() for piece in it)
        return self.name_speaker and any(piece.is_field and piece.value == template_form.NAMED_TEXT for piece in pieces)

    def text_fields(self, names: Iterable[str]) -> list[str]:
        """Fields of the entry that these templates write out, besides its text and what is recorded."""
        forms = self.forms()
        pieces = (piece for name in names for turn in forms[name] for it in turn.contents.values() for piece in it)
        known = {template_form.AUDIO, template_form.NAMED_TEXT, "text", *template_form.SPOKEN}
        return [*dict.fromkeys(piece.value for piece in pieces if piece.is_field and piece.value not in known)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_template_settings(path: Path) -> TemplateSettings:
    """Settings from YAML; what the file does not say is as usual, its templates come on top of the built-in ones.

    Raises UserError naming the file and the key.
    """
    values = read_yaml(path)
    templates = as_typed(values.pop("templates", None) or {}, Any)
    if not isinstance(templates, dict):
        raise UserError(f"{path}: templates is {templates!r}; write names with a list of turns below each")
    try:
        settings: TemplateSettings = build(TemplateSettings, values, str(path))
        return replace(settings, templates=settings.templates | {str(name): items for name, items in templates.items()})
    except UserError as error:
        told = str(error)
        raise UserError(told if told.startswith(str(path)) else f"{path}: {told}") from None


class ChatTemplate:
    """Renders samples and prompts for one tokenizer and token layout."""

    def __init__(self, tokenizer: TextTokenizer, layout: TokenLayout, settings: TemplateSettings | None = None) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.settings = settings or TemplateSettings()
        ratios = self.settings.text_ratio, self.settings.audio_ratio
        self._writer = ContentWriter(tokenizer, layout, *ratios, self.settings.last_span)
        markup = (ChatML if self.settings.chat_template == "chatml" else OwnTemplate)(tokenizer, layout)
        self._frame_of = lru_cache(maxsize=1024)(markup.frame)  # of a succession of roles
        self._forms = {name: Form(turns) for name, turns in self.settings.forms().items()}

    @classmethod
    def for_codes(cls, tokenizer: TextTokenizer, codebook_size: int, settings: TemplateSettings) -> "ChatTemplate":
        """With the tokenizer's vocabulary, extended; `im_end` of the layout is what ends a turn under these settings.

        Raises UserError where they ask for a chat template of the tokenizer and it has none that can be used.
        """
        own = end_of_turn(tokenizer) if settings.chat_template == "tokenizer" else None
        return cls(tokenizer, extend(tokenizer, codebook_size, end_of_turn=own), settings)

    def require(self, name: str) -> None:
        """Raise UserError unless there is a template `name`."""
        self.settings.require(name)

    def sample(self, name: str, entry: Entry, codes: Sequence[Codes]) -> Sample:
        """An entry as a sample of template `name`; `codes` of its recordings, in the order of `clips(entry)`.

        Targets: the contents of the assistant, each with the token that ends its turn; of a document all.
        Raises UserError where the entry lacks what the template writes.
        """
        return self.samples([name], entry, codes)[0]

    def samples(self, names: Sequence[str], entry: Entry, codes: Sequence[Codes]) -> list[Sample]:
        """A sample for each template; what they share is written once."""
        writer = self._entry_writer(entry, codes)
        return [self._sample(name, writer) for name in names]

    def prompt(self, name: str, entry: Entry, codes: Sequence[Codes]) -> np.ndarray:
        """The start of `sample`, up to and including the header of the assistant's last turn, int32.

        What that turn writes may be missing from entry and codes. Raises UserError where something else is.
        """
        form = self._form(name)
        if form.is_document:
            raise UserError(
                f"template {name} writes a document: it has no prompt; choose one that ends with the assistant"
            )
        try:
            writer = self._entry_writer(entry, codes)
            roles, contents = form.turns(entry)
            asked = len(roles) - (roles[-1] == ASSISTANT)
            written = [content(writer) for content in contents[:asked]]
            return to_array(self._opening((*roles[:asked], ASSISTANT), written)).copy()
        except UserError as error:
            raise UserError(f"{error} (template {name})") from None

    def asr(self, codes: np.ndarray, text: str) -> Sample:
        """Speech in; its transcript, interleaved with the same codes, out."""
        return self.sample("asr", {"audio": "given", "text": text}, [codes])

    def tts(self, text: str, codes: np.ndarray, speaker: str | None = None) -> Sample:
        """Text in; the text, interleaved with its speech, out."""
        return self.sample("tts", {"audio": "given", "text": text, "speaker": speaker}, [codes])

    def asr_prompt(self, codes: np.ndarray) -> np.ndarray:
        """Ids up to and including the assistant's header, int32."""
        return self.prompt("asr", {"audio": "given"}, [codes])

    def tts_prompt(self, text: str, speaker: str | None = None) -> np.ndarray:
        """Ids up to and including the assistant's header, int32; the speaker is used where `name_speaker` is set."""
        return self.prompt("tts", {"text": text, "speaker": speaker}, [])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Sample:
        """A conversation of {"role", "content"} in the released format; the turns of the assistant are targets."""
        contents = [self._parse(message["content"]) for message in messages]
        return self._conversation(tuple(message["role"] for message in messages), contents)

    def document(self, content: str) -> Sample:
        """Text of the released format without turns; all of it is target."""
        return Sample(ids := self._parse(content), [(len(ids) // WIDTH, True)])

    def audio(self, codes: np.ndarray) -> bytes:
        """A recording's codes as ids (`id_bytes`), as `samples` makes them. Raises UserError on one outside the codebook."""
        return self._writer.audio(codes)

    def parse(self, content: str) -> np.ndarray:
        """Ids (int32) of a string of the released format (`released_format.parse`)."""
        return to_array(self._parse(content))

    def _parse(self, content: str) -> bytes:
        return released_format.parse(content, self.layout, self._writer.encode)

    def _entry_writer(self, entry: Entry, codes: Sequence[Codes]) -> EntryWriter:
        return EntryWriter(self._writer, entry, codes, self.settings.name_speaker)

    def _form(self, name: str) -> Form:
        if name not in self._forms:
            self.require(name)
        return self._forms[name]

    def _sample(self, name: str, writer: EntryWriter) -> Sample:
        form = self._form(name)
        try:
            if form.has_spoken_turns and writer.entry.get("turns") and not writer.has_spoken_turns:
                raise UserError("has no audio: record one of its turns, or use a template of text alone")
            roles, contents = form.turns(writer.entry)
            if form.is_document:
                return Sample(content := contents[0](writer), [(len(content) // WIDTH, True)])
            if ASSISTANT not in roles:
                raise UserError("has no turn of the assistant, so there is nothing to learn: leave the entry out")
            return self._conversation(roles, [content(writer) for content in contents])
        except UserError as error:
            raise UserError(f"{error} (template {name})") from None

    def _conversation(self, roles: tuple[str, ...], contents: Sequence[bytes]) -> Sample:
        """Contents in their markup. Targets: those of the assistant, each with the token that ends its turn."""
        start, steps = self._frame_of(roles)
        parts = [start]
        ends: list[tuple[int, bool]] = []
        size, is_target = len(start), False
        for index, after in steps:
            content = contents[index]
            parts += content, after
            if is_target := roles[index] == ASSISTANT:
                ends += (size // WIDTH, False), ((size + len(content)) // WIDTH + 1, True)
            size += len(content) + len(after)
        if not is_target:
            ends.append((size // WIDTH, False))
        # What follows the last end of turn would only take up room.
        return Sample(b"".join(parts)[: ends[-1][0] * WIDTH], ends)

    def _opening(self, roles: tuple[str, ...], contents: Sequence[bytes]) -> bytes:
        """Ids up to the content of the assistant's last turn, the last of `roles`; the start of such a sample."""
        start, steps = self._frame_of(roles)
        parts = [start]
        for index, after in steps:
            if index == len(roles) - 1:
                break
            parts += contents[index], after
        return b"".join(parts)
