"""A pack in words: samples, segments, spans, and what each position has to predict once the objective has drawn."""

from collections.abc import Iterator, Sequence

import numpy as np

from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout

SHOWN_CODES = 6
SHOWN_TEXT = 72


def describe_pack(pack: Sequence[Sample], batch: Batch, layout: TokenLayout, tokenizer: TextTokenizer) -> Iterator[str]:
    """Lines on every sample of a pack; `batch` is the pack collated, as its only row."""
    sample_ids = batch.sample_ids[0].numpy()
    inputs, ar, nar = (tensor[0].numpy() for tensor in (batch.input_ids, batch.ar_weights, batch.nar_weights))
    used = int(np.count_nonzero(sample_ids))
    yield (
        f"{len(pack)} samples, {used} of {len(sample_ids)} positions used, "
        f"{batch.ar_tokens} AR targets, {batch.nar_tokens} NAR targets"
    )
    for number, sample in enumerate(pack, start=1):
        where = np.flatnonzero(sample_ids == number)
        place = slice(int(where[0]), int(where[-1]) + 1)
        yield ""
        yield _headline(number, sample, place, nar)
        yield from _runs(sample, inputs[place], ar[place], nar[place], layout, tokenizer)


def _headline(number: int, sample: Sample, place: slice, nar: np.ndarray) -> str:
    kept = place.stop - place.start
    cut = f", cut after {kept} of {len(sample)}" if kept < len(sample) else ""
    noise = "noised" if (nar[place] != 0).any() else "clean, AR only"
    return f"sample {number}: {kept} tokens at {place.start}..{place.stop - 1}{cut}; {noise}; key {sample.key:016x}"


def _runs(
    sample: Sample, inputs: np.ndarray, ar: np.ndarray, nar: np.ndarray, layout: TokenLayout, tokenizer: TextTokenizer
) -> Iterator[str]:
    """One line per run of equal role (prompt or target) and class; positions count within the sample."""
    num_kept = len(inputs)
    kinds = 2 * sample.is_target[:num_kept] + layout.is_audio[sample.ids[:num_kept]]
    starts = np.flatnonzero(np.append(True, kinds[1:] != kinds[:-1]))
    for start, end in zip(starts, [*starts[1:], num_kept], strict=True):
        ids = sample.ids[start:end]
        is_target, is_audio = bool(kinds[start] & 2), bool(kinds[start] & 1)
        words = _codes(ids, layout) if is_audio else quote(ids, layout, tokenizer)
        losses = _loss("AR", ar[start:end]) + _loss("NAR", nar[start:end])
        masked = int(np.count_nonzero(inputs[start:end] == layout.mask))
        losses = ([f"{masked} masked"] if masked else []) + losses
        role = "target" if is_target else "prompt"
        line = f"  {role} {start:5}..{end - 1:<5} {'audio' if is_audio else 'text ':5} {words}"
        yield f"{line}  [{', '.join(losses)}]" if losses else line


def _loss(name: str, weights: np.ndarray) -> list[str]:
    counted = weights[weights != 0]
    return [f"{name} {len(counted)} x {counted[0]:.4g}"] if len(counted) else []


def _codes(ids: np.ndarray, layout: TokenLayout) -> str:
    codes = layout.codes_of(ids)
    first = " ".join(map(str, codes[:SHOWN_CODES].tolist())) + (" ..." if len(codes) > SHOWN_CODES else "")
    names = {token: name for name, token in layout.special_ids.items()}
    ends = "".join(f" {PIECES[names[token]]}" for token in ids.tolist() if token in names)
    return f"{len(codes)} codes: {first}{ends}"


def quote(ids: np.ndarray, layout: TokenLayout, tokenizer: TextTokenizer) -> str:
    """Text ids in quotes, specials by name, long text cut in the middle."""
    text = readable(ids, layout, tokenizer).replace("\n", "\\n")
    if len(text) > SHOWN_TEXT:
        half = SHOWN_TEXT // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return f'"{text}"'


def readable(ids: np.ndarray, layout: TokenLayout, tokenizer: TextTokenizer) -> str:
    """Text of ids, specials by name."""
    names = {token: PIECES[name] for name, token in layout.special_ids.items() if name in PIECES}
    words: list[str] = []
    plain: list[int] = []
    for token in [*ids.tolist(), -1]:
        if token >= 0 and token not in names:
            plain.append(token)
            continue
        if plain:
            words.append(tokenizer.decode(plain))
            plain = []
        words.append(names.get(token, ""))
    return "".join(words)
