"""English sentences by a small grammar and the words of words.yaml: all from the seed."""

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

WORDS = {
    kind: words.split()
    for kind, words in yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf8")).items()
}
MOST_SAME = 20  # draws in a row that were all seen before: the grammar is used up


def sentences(count: int, seed: int) -> Iterator[str]:
    """`count` different sentences, lower case, without punctuation. Raises ValueError where there are not so many."""
    generator, seen, in_vain = random.Random(seed), set[str](), 0
    while len(seen) < count:
        text = sentence(generator)
        in_vain = in_vain + 1 if text in seen else 0
        if in_vain > MOST_SAME:
            raise ValueError(f"the grammar gives hardly more than {len(seen)} sentences, not {count}")
        if not in_vain:
            seen.add(text)
            yield text


def sentence(generator: random.Random) -> str:
    """Who does what, perhaps how, where and when: 5 to 16 words."""
    pick = generator.choice
    does = (
        f"{pick(WORDS['modals'])} {pick(WORDS['verbs'])}"
        if generator.random() < 0.7
        else f"did not {pick(WORDS['verbs'])}"
    )
    parts = [
        _noun(generator, WORDS[pick(("people", "people", "animals"))]),
        f"{pick(WORDS['adverbs'])} {does}" if generator.random() < 0.25 else does,
        _noun(generator, WORDS[pick(("things", "things", "people", "animals"))]),
    ]
    parts += [f"{pick(WORDS['places'])} {_noun(generator, WORDS['things'])}"] if generator.random() < 0.4 else []
    parts += [pick(WORDS["times"])] if generator.random() < 0.4 else []
    return " ".join(parts).replace("-", " ")


def _noun(generator: random.Random, nouns: list[str]) -> str:
    adjective = f"{generator.choice(WORDS['adjectives'])} " if generator.random() < 0.5 else ""
    noun = generator.choice(nouns)
    if generator.random() < 0.15:
        return f"{generator.choice(WORDS['numbers'])} {adjective}{plural(noun)}"
    return f"the {adjective}{plural(noun) if generator.random() < 0.2 else noun}"


def plural(noun: str) -> str:
    """Of the nouns of words.yaml."""
    irregular = {
        "mouse": "mice",
        "goose": "geese",
        "sheep": "sheep",
        "salmon": "salmon",
        "trout": "trout",
        "wolf": "wolves",
    }
    if noun in irregular or noun in ("scissors", "silver", "coffee"):
        return irregular.get(noun, noun)
    if noun.endswith("man"):
        return noun.removesuffix("man") + "men"
    if noun.endswith(("s", "x", "ch", "sh", "potato")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"
