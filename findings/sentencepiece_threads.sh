#!/usr/bin/env bash
# sentencepiece 0.2.3.
# Expected: `num_threads` of the trainer (16 unless named) decides how long training takes.
# Seen: a unigram model trained on the same lines with 1, 2 and 16 threads has the same pieces with other scores, three different files; a BPE model is one file.
#   Expectations are summed by thread, in float32.
# Why it matters: a tokenizer that is known by the checksum of its model file is another one, where a job trains it again on a node with other settings.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/train.py" <<'PY'
import io
import random
import sys

import sentencepiece

drawn = random.Random(0)
words = ["".join(drawn.choice("abcdefghijklmnop") for _ in range(drawn.randint(2, 9))) for _ in range(3000)]
often = [1 / rank for rank in range(1, len(words) + 1)]
lines = [" ".join(drawn.choices(words, often, k=drawn.randint(3, 12))) for _ in range(8000)]


def model(kind, threads):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, vocab_size=600, model_type=kind, num_threads=threads, minloglevel=2
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    return [(found.id_to_piece(piece), found.get_score(piece)) for piece in range(found.get_piece_size())]


seen = {}
for kind in ("unigram", "bpe"):
    one, *others = (model(kind, threads) for threads in (1, 2, 16))
    assert all(sorted(piece for piece, _ in other) == sorted(piece for piece, _ in one) for other in others)
    seen[kind] = [other == one for other in others]
    print(sentencepiece.__version__, kind, "with 2 and 16 threads as with one, scores too:", seen[kind])
sys.exit(seen != {"unigram": [False, False], "bpe": [True, True]})
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q sentencepiece==0.2.3
"$work/venv/bin/python" "$work/train.py"
