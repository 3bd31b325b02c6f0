"""Speak a text, transcribe a recording, or answer one or the other, with an exported model.

python ttt_dist/generate.py --model runs/demo/export --prompt "three one four" --out out.wav
python ttt_dist/generate.py --model runs/demo/export --prompt "three one four" --speaker alice --out out.wav
python ttt_dist/generate.py --model runs/demo/export --audio in.wav
python ttt_dist/generate.py --model runs/glm/export --chat --audio question.wav --out answer.wav \\
    --decoder-command "python glm_decode.py {codes} {wav}"
python ttt_dist/generate.py --model runs/glm/export --chats chats.jsonl --out answers/
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.flags import add_decoding_flags, settings_from_flags
from ttt_dist.util.atomic_files import writing
from ttt_dist.util.console import note, print_piece, print_rank0, run_command, warn
from ttt_dist.util.errors import UserError

# What works with the model is imported where it is used: --help and mistakes of the command line wait for nothing.
if TYPE_CHECKING:
    import numpy as np

    from ttt_dist.audio import Codec
    from ttt_dist.inference.decoder import Decoder, Request, Result
    from ttt_dist.model.hf.folder import ModelFolder


def main() -> None:
    """Speak, transcribe or answer, as the flags say."""
    arguments = parse_arguments()
    from ttt_dist.checkpoint.export import model_folder

    arguments.model = model_folder(arguments.model)
    settings = settings_from_flags(arguments)
    if arguments.chats is not None:
        answer_chats(arguments, settings)
        return
    from ttt_dist.audio import load_codec
    from ttt_dist.inference.decoder import Decoder, Request
    from ttt_dist.inference.limits import warn_of_limits
    from ttt_dist.model.hf.folder import load_folder

    folder = load_folder(arguments.model)
    codec = load_codec(folder.codec, decoder_command=arguments.decoder_command)
    speaks = arguments.chat or arguments.prompt is not None
    if speaks:
        codec.require_decoder()
    request = Request(prompt(arguments, folder, codec), arguments.seed)
    response = tell(Decoder(folder), request, settings if speaks else replace(settings, stop_at_last_span=True))
    warn_of_limits([response.finish], settings)
    if speaks:
        write(response, codec, arguments.out, text_will_do=arguments.chat)


def prompt(arguments: argparse.Namespace, folder: "ModelFolder", codec: "Codec") -> "np.ndarray":
    """What the model is asked, as its training wrote it."""
    from ttt_dist.audio import read_audio
    from ttt_dist.sequence.templates import ChatTemplate

    template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
    codes = codec.encode([read_audio(arguments.audio, codec.sample_rate)]) if arguments.audio else []
    if arguments.chat:
        said = {"audio": "given"} if codes else {"text": arguments.prompt}
        return template.prompt("audio_chat", {"turns": [{"role": "user"} | said], "lang": arguments.lang}, codes)
    if codes:
        return template.prompt("asr", {"audio": "given", "lang": arguments.lang}, codes)
    if arguments.speaker and not folder.template.name_speaker:
        raise UserError("--speaker: this model was trained without speakers' names; leave the flag out")
    entry = {"text": arguments.prompt, "speaker": arguments.speaker or told_speaker(folder), "lang": arguments.lang}
    return template.prompt("tts", entry, [])


def told_speaker(folder: "ModelFolder") -> str | None:
    """The model's usual speaker, and a word on it."""
    if folder.usual_speaker is not None:
        note(f"speaks as {folder.usual_speaker} (--speaker chooses among {brief_list(folder.speakers)})")
    elif folder.template.name_speaker:
        warn("this model's training named its speakers, and none is named here; choose one with --speaker")
    return folder.usual_speaker


def brief_list(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def tell(decoder: "Decoder", request: "Request", settings: DecodeSettings) -> "Result":
    """Print the response's text as it comes."""
    from ttt_dist.inference.detokenizer import Finished, TextPiece

    for _, event in decoder.stream([request], settings):
        if isinstance(event, TextPiece):
            print_piece(event.text)
        if isinstance(event, Finished):
            print_rank0()
            return event.result
    raise AssertionError("a stream ends with its result")


def write(response: "Result", codec: "Codec", out: Path, text_will_do: bool) -> None:
    """Write the response's speech as a WAV file."""
    from ttt_dist.audio import write_wav

    if not len(response.codes):
        if text_will_do and response.text:
            return
        raise UserError(
            f"the model answered without speech ({response.text!r}); train it longer, or try another --seed"
        )
    with writing(out):
        write_wav(out, codec.decode(response.codes), codec.sample_rate)
    print_rank0(f"{out}: {len(response.codes) / codec.code_rate:.2f} s")


def answer_chats(arguments: argparse.Namespace, settings: DecodeSettings) -> None:
    """Answer the user's turns of many conversations; one line each in OUT/answers.jsonl, speech below OUT/wav."""
    from ttt_dist.evaluation.args import EvalArgs
    from ttt_dist.evaluation.context import EvalContext
    from ttt_dist.evaluation.item_errors import ItemErrors
    from ttt_dist.evaluation.items import Item, read_items
    from ttt_dist.evaluation.job import write_jsonl
    from ttt_dist.evaluation.tasks.chats import speech_chat
    from ttt_dist.evaluation.tasks.item_adapters import chat
    from ttt_dist.inference.limits import warn_of_limits

    args = EvalArgs(
        task="speech_chat", model=arguments.model, data=arguments.chats, out=arguments.out, template="audio_chat",
        decoding=settings, decoder_command=arguments.decoder_command, seed=arguments.seed,
    )  # fmt: skip
    lines = read_items(args.data, chat)
    item_errors = ItemErrors()
    items = [line for line in lines if isinstance(line, Item)]
    records = speech_chat(EvalContext.open(args, speaks=True, is_judged=False), items, item_errors)
    write_jsonl(args.out / "answers.jsonl", records)
    problems = [line for line in lines if isinstance(line, str)] + item_errors.problems
    for problem in problems:
        warn(problem)
    warn_of_limits([answer["finish"] for record in records for answer in record["answers"]], settings)
    print_rank0(f"{args.out / 'answers.jsonl'}: {len(records)} chats answered, {len(problems)} not")
    if problems or not records:
        raise UserError(f"{args.data}: {len(problems)} chat(s) could not be answered; correct them (named above)")


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="exported model folder, or a checkpoint of a run")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="text to speak, or, with --chat, to answer")
    given.add_argument("--audio", type=Path, help="recording to transcribe, or to answer (WAV, FLAC, OGG, MP3)")
    given.add_argument("--chats", type=Path, help="conversations to answer, one per line (JSONL with `turns`)")
    parser.add_argument("--chat", action="store_true", help="answer in text and speech (template audio_chat)")
    parser.add_argument("--lang", help="language of the prompt, where the model's templates know several")
    parser.add_argument("--speaker", help="speaker to imitate, where the model was trained with names")
    parser.add_argument(
        "--out", type=Path, default=Path("out.wav"), help="WAV file to write; of --chats a folder (default out.wav)"
    )
    parser.add_argument(
        "--decoder-command",
        metavar="COMMAND",
        help="program that makes the speech of the codes, with {codes} and {wav} in it (docs/codecs.md)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is sampled")
    add_decoding_flags(parser)
    arguments = parser.parse_args()
    if arguments.chats is not None and (arguments.chat or arguments.speaker or arguments.lang):
        parser.error("--chats: languages stand in its lines; leave --chat, --speaker and --lang out")
    if arguments.speaker and (arguments.chat or arguments.audio is not None):
        parser.error("--speaker names the voice of a text that is spoken (--prompt without --chat); leave it out")
    if arguments.decoder_command is not None and arguments.audio is not None and not arguments.chat:
        parser.error("--decoder-command makes speech, and --audio alone makes text: add --chat, or leave it out")
    if arguments.prompt is not None and not arguments.prompt.strip():
        parser.error("--prompt is empty: write a text")
    if arguments.seed < 0:
        parser.error("--seed must be at least 0")
    return arguments


def command() -> None:
    """The entry point `ttt-generate`."""
    run_command(main)


if __name__ == "__main__":
    command()
