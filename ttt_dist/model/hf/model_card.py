"""The model card of an exported folder: README.md, with the front matter that the Hub reads.

License and languages are left to whoever publishes the model; nothing is said that is not known.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ttt_dist.audio import describe_codec
from ttt_dist.model.hf.families import model_config
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

CARD = "README.md"
FRONT_MATTER = """---
library_name: transformers
pipeline_tag: any-to-any
tags:
- text-to-speech
- automatic-speech-recognition
- custom_generate
- ttt-dist
# license: say under which one this model may be used; base_model, datasets and language help others to find it
---
"""
WAYS = {
    "ttt": "text from left to right, and speech by absorbing diffusion within spans",
    "ar": "both from left to right",
    "nar": "both by absorbing diffusion",
}
DECODED = """## Use

With ttt-dist (`pip install ttt-dist`), from a local copy DIR of this folder:
```
ttt-generate --model DIR --prompt "three one four" --out out.wav
ttt-generate --model DIR --audio out.wav
```
The same decoder behind `generate` of transformers, on the weights that it has loaded:
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("DIR"), AutoTokenizer.from_pretrained("DIR")
chat = [{"role": "user", "content": "three one four"}]
prompt = tokenizer.apply_chat_template(chat, task="tts", add_generation_prompt=True, return_tensors="pt")
out = model.generate(**prompt, custom_generate="DIR", trust_remote_code=True, return_dict_in_generate=True)
print(out.text[0], out.finish[0])

import torch
from ttt_dist.audio import load_codec, write_wav

codec = load_codec("DIR/codec")
write_wav("out.wav", codec.decode(torch.cat(out.spans[0]).numpy()), codec.sample_rate)
```
As a text model, in transformers, vLLM or SGLang, without speech:
```
vllm serve DIR
```
"""
TEXT_ALONE = """## Use

The codec and the templates of training are not in this folder: it loads as a text model in transformers, vLLM and SGLang. To
decode speech, export it again where the shards of its run are.
"""


def model_card(
    values: Mapping[str, Any], layout: TokenLayout, place: Path, story: Mapping[str, str], is_whole: bool
) -> str:
    """The card of the model of a config.json; `story` says of its training what is known, by name.

    `place` is the folder, for its codec; `is_whole`: whether all is there that decoding speech takes.
    """
    config = model_config(dict(values), place)
    num_parameters = sum(map(prod, parameter_shapes(config, layout.vocab_size).values()))  # without padding
    facts = {
        "architecture": values["architectures"][0],
        "parameters": f"{num_parameters:,}" + (" (head tied to the embedding)" if config.tie_embeddings else ""),
        "shape": (
            f"{config.num_layers} layers, width {config.hidden_size:,}, {config.num_heads} heads ({config.num_kv_heads} of keys), "
            f"MLP {config.ffn_hidden_size:,}"
        ),
        "vocabulary": f"{layout.vocab_size:,} tokens, {layout.num_codes:,} of them audio codes",
        "weights": values["dtype"],
        "codec": _codec(place / "codec"),
        **story,
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    kind = values.get("objective", {}).get("kind", "ttt")
    about = f"One Transformer for text and speech. It writes {WAYS[kind]}; speech is the codes of a codec."
    table = "\n".join(["| | |", "|---|---|", *rows])
    return f"{FRONT_MATTER}\n# Text-to-Talk\n\n{about}\n\n{table}\n\n{DECODED if is_whole else TEXT_ALONE}"


def _codec(folder: Path) -> str:
    try:
        codec = describe_codec(folder)
    except UserError:
        return ""
    return f"{codec.name}, {codec.sample_rate:,} Hz, {codec.frame_rate:g} frames a second, hash {codec.hash[:12]}"
