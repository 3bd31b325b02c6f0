"""Speak a text, or transcribe a recording, with an exported model.

python ttt_dist/generate.py --model runs/demo/export --prompt "three one four" --out out.wav
python ttt_dist/generate.py --model runs/demo/export --prompt "three one four" --speaker alice --out out.wav
python ttt_dist/generate.py --model runs/demo/export --audio in.wav
python ttt_dist/generate.py --model runs/glm/export --prompt "Good morning." --out out.wav \\
    --decoder-command "python glm_decode.py {codes} {wav}"
"""

import argparse
import sys
from pathlib import Path

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.audio import Codec, load_codec, read_audio, write_wav
from ttt_dist.errors import UserError
from ttt_dist.files import writing
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.settings import DecodeSettings, add_decoding_flags, settings_from_flags
from ttt_dist.model.huggingface import ModelFolder, load_folder
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.telemetry.console import main_guard, say


def main() -> None:
    arguments = parse_arguments()
    settings = settings_from_flags(arguments)
    folder = load_folder(arguments.model)
    if arguments.audio is not None:
        transcribe(folder, arguments.audio, settings, arguments.seed)
    else:
        codec = load_codec(folder.codec, decoder_command=arguments.decoder_command)
        codec.require_decoder()
        speak(folder, codec, arguments.prompt, arguments.speaker, arguments.out, settings, arguments.seed)


def transcribe(folder: ModelFolder, audio: Path, settings: DecodeSettings, seed: int) -> None:
    """Print the text of a recording."""
    codec = load_codec(folder.codec)
    (codes,) = codec.encode([read_audio(audio, codec.sample_rate)])
    prompt = ChatTemplate(folder.tokenizer, folder.layout, folder.template).asr_prompt(codes)
    settings = DecodeSettings(**{**vars(settings), "stop_at_last_span": True})
    (response,) = Decoder.from_folder(folder).generate([Request(prompt, seed)], settings)
    say(response.text)


def speak(
    folder: ModelFolder,
    codec: Codec,
    text: str,
    speaker: str | None,
    out: Path,
    settings: DecodeSettings,
    seed: int,
) -> None:
    """Write a text's speech as a WAV file."""
    if speaker and not folder.template.name_speaker:
        raise UserError("--speaker: this model was trained without speakers' names; leave the flag out")
    prompt = ChatTemplate(folder.tokenizer, folder.layout, folder.template).tts_prompt(text, speaker)
    (response,) = Decoder.from_folder(folder).generate([Request(prompt, seed)], settings)
    if not len(response.codes):
        raise UserError(
            f"the model answered without speech ({response.text!r}); train it longer, or try another --seed"
        )
    with writing(out):
        write_wav(out, codec.decode(response.codes), codec.sample_rate)
    say(f"{out}: {len(response.codes) / codec.code_rate:.2f} s, text: {response.text}")


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="exported model folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", help="text to speak")
    given.add_argument("--audio", type=Path, help="recording to transcribe (WAV, FLAC, OGG, MP3)")
    parser.add_argument("--speaker", help="speaker to imitate, where the model was trained with names")
    parser.add_argument("--out", type=Path, default=Path("out.wav"), help="WAV file to write (default out.wav)")
    parser.add_argument(
        "--decoder-command",
        metavar="COMMAND",
        help="program that makes the speech of the codes, with {codes} and {wav} in it (docs/codecs.md)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is sampled")
    add_decoding_flags(parser)
    arguments = parser.parse_args()
    if arguments.decoder_command is not None and arguments.prompt is None:
        parser.error("--decoder-command makes speech: it goes with --prompt")
    if arguments.seed < 0:
        parser.error("--seed must be at least 0")
    return arguments


if __name__ == "__main__":
    main_guard(main)
