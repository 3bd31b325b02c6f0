"""Families of published models: Hugging Face's config.json as a `ModelConfig`, and back.

What changes the computation and is not implemented is refused, never ignored: a model that loads computes what the published
one does.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ttt_dist.config.decode import GENERATION
from ttt_dist.config.model import FAMILY_TRAITS, ModelConfig, RopeScaling
from ttt_dist.config.objective import Objective
from ttt_dist.config.section import Section
from ttt_dist.model.structure import head_dim
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

if TYPE_CHECKING:
    import torch

T = TypeVar("T", int, float)
S = TypeVar("S", bound=Section)

CONFIG = "config.json"
LAYOUT = "token_layout.json"
MAX_SHARD_BYTES = 5 * 10**9  # of a file of weights
MAX_POSITIONS = 32768  # a key that transformers asks for; rotary positions have no table to run out of
DEFAULT_THETA = 10000.0
SCALING_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
AGAIN = "export or copy the model again"
KINDS = {
    "architectures": list, "model_type": str, "hidden_act": str, "layer_types": list, "rope_parameters": dict,
    "rope_scaling": dict, "tie_word_embeddings": bool, "quantization_config": dict, "objective": dict,
    "max_position_embeddings": int, "vocab_size": int, "source_vocab_size": int,
}  # fmt: skip
"""What keys of config.json are where they are not null; numbers are looked at where they are read."""
SHAPE = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size", "rope_theta", "qkv_bias")
"""Of the `model` section, what is written whether it is a default or not."""
ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SCALING_NUMBERS}


class Fixed(NamedTuple):
    """The one value of a key of config.json that is implemented, and what to do about another one."""

    value: Any
    remedy: str


class Family(NamedTuple):
    """How transformers names and configures a family; its biases and norms stand in FAMILY_TRAITS."""

    architecture: str
    fixed: dict[str, Fixed]
    """Keys that change the computation; written into every config.json."""
    defaults: dict[str, Any]
    """What transformers takes a missing key for, where that is not None, False or as elsewhere."""


NO_BIAS = Fixed(False, "this model cannot be trained here")
NO_WINDOW = Fixed(False, "set it to false if no sample is longer than sliding_window")

FAMILIES = {
    "qwen2": Family("Qwen2ForCausalLM", {"use_sliding_window": NO_WINDOW}, {"num_key_value_heads": 32}),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"use_sliding_window": NO_WINDOW, "attention_bias": NO_BIAS},
        {"head_dim": 128, "num_key_value_heads": 32},
    ),
    "llama": Family("LlamaForCausalLM", {"attention_bias": NO_BIAS, "mlp_bias": NO_BIAS}, {}),
    "mistral": Family(
        "MistralForCausalLM",
        {"sliding_window": Fixed(None, "set it to null if no sample is longer than that")},
        {"sliding_window": 4096, "num_key_value_heads": 8},
    ),
}
assert FAMILIES.keys() == FAMILY_TRAITS.keys()


def read_model_config(folder: str | Path) -> ModelConfig:
    """The model of a Hugging Face folder. Raises UserError naming config.json and the key that is missing or not implemented."""
    path = Path(folder) / CONFIG
    return model_config(read_json(path), path)


def model_config(values: dict[str, Any], path: Path) -> ModelConfig:
    """The contents of config.json as our settings; `path` is named in refusals."""
    _require_kinds(values, path)
    family = _family(values, path)
    values = FAMILIES[family].defaults | values
    _refuse_other_maths(values, family, path)
    theta, scaling = _rope(values, path)
    qkv_bias, qk_norm = FAMILY_TRAITS[family]
    num_heads = _number(values, "num_attention_heads", int, path)
    has_kv_heads, has_head_dim = (values.get(key) is not None for key in ("num_key_value_heads", "head_dim"))
    config = ModelConfig(
        hidden_size=_number(values, "hidden_size", int, path),
        num_layers=_number(values, "num_hidden_layers", int, path),
        num_heads=num_heads,
        num_kv_heads=_number(values, "num_key_value_heads", int, path) if has_kv_heads else num_heads,
        ffn_hidden_size=_number(values, "intermediate_size", int, path),
        head_dim=_number(values, "head_dim", int, path) if has_head_dim else None,
        rope_theta=theta,
        rms_norm_eps=_number(values, "rms_norm_eps", float, path, default=1e-6),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        init_std=_number(values, "initializer_range", float, path, default=0.02),
        rope_scaling=scaling,
        family=family,  # type: ignore[arg-type]  # one of FAMILIES, which are the Literal's
    )
    try:
        config.require_valid("model")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def model_section(folder: str | Path) -> dict[str, Any] | None:
    """The `model` section of a recipe for a model folder, defaults left out; None where there is no such folder.

    Raises UserError as `read_model_config`.
    """
    if not (Path(folder) / CONFIG).is_file():
        return None
    usual, values = ModelConfig(), asdict(read_model_config(folder))
    shape = [name for name in SHAPE if values[name] is not None]
    return {name: values[name] for name in values if name in shape or values[name] != asdict(usual)[name]}


def family_of(config: ModelConfig) -> str:
    """The family that a model is exported as."""
    traits = (config.qkv_bias, config.qk_norm)
    return config.family or next(name for name, its in FAMILY_TRAITS.items() if its == traits)


def require_same_model(folder: str | Path, config: ModelConfig) -> None:
    """Raise UserError naming the first setting in which the model of `folder` computes something else than `config`."""
    theirs, ours = _computation(read_model_config(folder)), _computation(config)
    for key, value in theirs.items():
        if value != ours[key]:
            raise UserError(
                f"{Path(folder) / CONFIG}: model.{key} is {value} there and {ours[key]} in this run; set model.{key}={value}"
            )


def _computation(config: ModelConfig) -> dict[str, Any]:
    """Settings that the output depends on, by their name below `model.`, with defaults put in."""
    scaling = config.rope_scaling
    values = {
        name: getattr(config, name)
        for name in (
            "hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size", "head_dim", "rope_theta",
            "rms_norm_eps", "qkv_bias", "qk_norm", "tie_embeddings",
        )
    }  # fmt: skip
    values["head_dim"] = head_dim(config)
    values["rope_scaling.type"] = scaling.type
    return values | {
        f"rope_scaling.{name}": getattr(scaling, name) if scaling.type != "none" else None for name in SCALING_NUMBERS
    }


def config_json(
    config: ModelConfig, layout: TokenLayout, num_rows: int, dtype: "torch.dtype", objective: Objective | None = None
) -> dict[str, Any]:
    """The contents of config.json for a model whose embedding has `num_rows` rows.

    `mask_token` and `audio_token_id_start` are read by the released TtT code; `objective` tells our decoder what the
    model was trained to do.
    """
    name, scaling = family_of(config), config.rope_scaling
    numbers = {key: getattr(scaling, key) for key in SCALING_NUMBERS}
    stretched = scaling.type != "none"
    longest = int(scaling.factor * scaling.original_max_position_embeddings) if stretched else 0
    values = {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_hidden_size,
        "head_dim": head_dim(config),
        "rope_theta": config.rope_theta,  # here and not in rope_parameters: transformers 4 reads it too
        "rope_scaling": {"rope_type": scaling.type, **numbers} if stretched else None,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "vocab_size": num_rows,
        "max_position_embeddings": max(MAX_POSITIONS, longest),
        "eos_token_id": layout.im_end,
        "pad_token_id": layout.pad,
        "bos_token_id": None,
        **dict.fromkeys(
            ("dtype", "torch_dtype"), str(dtype).removeprefix("torch.")
        ),  # transformers 5, and what is older
        "mask_token": layout.mask,
        "audio_token_id_start": int(layout.is_audio.argmax()),
        **{key: fixed.value for key, fixed in FAMILIES[name].fixed.items()},
    }
    if objective is not None:
        values["objective"] = objective.plain()
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError naming the file."""
    try:
        return read_object(path, AGAIN)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {AGAIN}") from error


def eos_of(folder: Path) -> list[int]:
    """The ids that end a text of a model, by its generation_config.json; none where it does not say."""
    path = folder / GENERATION
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = found if isinstance(found, list) else [found]
    return [number for number in ids if type(number) is int]


def stated_objective(values: dict[str, Any], path: Path) -> Objective | None:
    """What the model of a config.json was trained to do; None where it does not say. Raises UserError naming `path`."""
    stated = values.get("objective")
    # An export of before there were presets to choose from says kind and prompt_audio alone.
    return None if stated is None else build_section(Objective, {"preset": "paper", **stated}, path)


def build_section(kind: type[S], values: dict[str, Any], path: Path) -> S:
    """Settings that a model folder holds. Raises UserError naming the file."""
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}; export the model again") from None
    except TypeError as error:
        raise UserError(f"{path}: not the settings of this version ({error}); export the model again") from error


def _require_kinds(values: dict[str, Any], path: Path) -> None:
    for key, kind in KINDS.items():
        if values.get(key) is not None and type(values[key]) is not kind:
            raise UserError(f"{path}: {key} is {values[key]!r}, not of type {kind.__name__}; {AGAIN}")


def _family(values: dict[str, Any], path: Path) -> str:
    known = f"supported are {', '.join(FAMILIES)}"
    architecture, name = (values.get("architectures") or [None])[0], values.get("model_type")
    if architecture is None and name is None:
        raise UserError(f"{path}: lacks 'model_type'; {known}")
    if name is None:
        name = next((key for key, family in FAMILIES.items() if family.architecture == architecture), None)
    if name not in FAMILIES:
        raise UserError(f"{path}: model_type {values.get('model_type')!r} is not implemented; {known}")
    if architecture not in (None, FAMILIES[name].architecture):
        raise UserError(f"{path}: architectures names {architecture}, not {FAMILIES[name].architecture}; {known}")
    return str(name)


def _refuse_other_maths(values: dict[str, Any], family: str, path: Path) -> None:
    """What transformers would compute otherwise than our Transformer."""
    for key, (wanted, remedy) in FAMILIES[family].fixed.items():
        value = values.get(key, wanted)
        if (value or None) != (wanted or None):
            raise UserError(f"{path}: {key} is {value}, which is not implemented; {remedy}")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(f"{path}: hidden_act is {values['hidden_act']!r}; only silu is implemented")
    if any(kind != "full_attention" for kind in values.get("layer_types") or []):
        raise UserError(f"{path}: layer_types asks for more than full_attention, which alone is implemented")
    if values.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: weights are quantized; take the model's bf16 or fp32 checkpoint")


def _rope(values: dict[str, Any], path: Path) -> tuple[float, RopeScaling]:
    """Base and scaling of the rotary frequencies, as transformers 4 (top level) or 5 (rope_parameters) writes them."""
    sources = [values.get("rope_parameters") or {}, values.get("rope_scaling") or {}]
    sources.append({key: values[key] for key in ("rope_theta", "partial_rotary_factor") if values.get(key) is not None})
    rope: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key not in ROPE_KEYS:
                raise UserError(f"{path}: rope_scaling has the key {key!r}, which is not implemented")
            if rope.setdefault("rope_type" if key == "type" else key, value) != value:
                raise UserError(f"{path}: {key} is both {rope[key]} and {value}; correct one of them")
    kind = rope.get("rope_type") or "default"
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rope_type is {kind!r}; only default and llama3 are implemented")
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise UserError(
            f"{path}: partial_rotary_factor is {rope['partial_rotary_factor']}; only whole heads are rotated"
        )
    theta = _number(rope, "rope_theta", float, path, default=DEFAULT_THETA)
    if kind == "default":
        return theta, RopeScaling()
    first_length = "original_max_position_embeddings"
    if rope.get(first_length) is None:
        rope[first_length] = values.get("max_position_embeddings")
    factor, low, high = (_number(rope, key, float, path) for key in SCALING_NUMBERS if key != first_length)
    return theta, RopeScaling(
        type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_number(rope, first_length, int, path),
    )


def _number(values: dict[str, Any], key: str, kind: type[T], path: Path, default: T | None = None) -> T:
    value = values.get(key)
    if value is None:
        if default is None:
            raise UserError(f"{path}: lacks '{key}'; {AGAIN}")
        return default
    try:
        if type(value) in (int, float) and value == kind(value):
            return kind(value)
    except (OverflowError, ValueError):  # infinite, no number, or a whole one beyond every float
        pass
    wanted = "a whole number" if kind is int else "a number"
    raise UserError(f"{path}: {key} must be {wanted}, not {value!r}; {AGAIN}")
