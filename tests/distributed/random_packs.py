"""Small random packs that hold every kind of sample, and the layout they are written in."""

from functools import cache

import numpy as np

from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout

SEQ_LEN = 48
LAYOUT = TokenLayout(
    tokenizer="toy",
    tokenizer_hash="0" * 64,
    num_text_tokens=40,
    special_ids={
        "pad": 40,
        "im_start": 41,
        "im_end": 42,
        "begin_of_audio": 43,
        "end_of_audio": 44,
        "begin_of_quad": 45,
        "mask": 78,
        "end_of_audio_new": 79,
        "end_of_audio_span_last": 80,
    },
    first_code=46,
    num_codes=32,
    vocab_size=81,
    padded_vocab_size=128,
)


def random_pack(random: np.random.Generator, layout: TokenLayout = LAYOUT) -> list[Sample]:
    """A pack of one to three samples of any kind, with padding left at its end."""
    kinds = random.permutation(["text", "transcribe", "speak", "long_speak", "prompt_only", "audio_only"])
    samples = [random_sample(str(kind), random, layout) for kind in kinds[: random.integers(1, 4)]]
    while sum(map(len, samples)) > SEQ_LEN:
        samples.pop()
    return samples


def random_sample(kind: str, random: np.random.Generator, layout: TokenLayout = LAYOUT) -> Sample:
    """`prompt_only` has no target at all, `audio_only` no text target but the delimiters'."""
    text = random.integers(0, 40, random.integers(2, 6))
    codes = layout.first_code + random.integers(0, layout.num_codes, random.integers(3, 14))
    heard = [layout.begin_of_audio, *codes, layout.end_of_audio]
    last = [layout.begin_of_quad, *codes, layout.end_of_audio_span_last, layout.im_end]
    first = [layout.begin_of_audio, *codes[:4], layout.end_of_audio_new]
    parts: dict[str, tuple[list[int], list[int]]] = {
        "text": ([layout.im_start, *text], [*text[::-1], layout.im_end]),
        "transcribe": ([layout.im_start, *heard], [*text, layout.im_end]),
        "speak": ([layout.im_start, *text], last),
        "long_speak": ([layout.im_start], [*text, *first, *text, *last]),
        "prompt_only": ([layout.im_start, *heard, *text], []),
        "audio_only": ([layout.im_start], [*codes, layout.end_of_audio_span_last]),
    }
    prompt, answer = parts[kind]
    ids = np.array([*prompt, *answer], dtype=np.int32)
    return Sample.from_arrays(ids, np.arange(len(ids)) >= len(prompt))


@cache
def global_batches(num_steps: int, global_batch: int) -> list[list[list[Sample]]]:
    """Packs [step][slot]; one slot of each step is an empty pack, so that a process may meet nothing but padding."""
    random = np.random.default_rng(0)
    steps = [[random_pack(random) for _ in range(global_batch)] for _ in range(num_steps)]
    for step, packs in enumerate(steps):
        packs[step % global_batch] = []
    return steps
