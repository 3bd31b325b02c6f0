"""ttt-dist: distributed training of Text-to-Talk audio-language models, from speech on disk to a model that talks.

`docs/architecture.md` has the picture of the house: which folder stands on which, and what crosses the borders.
"""

__version__ = "0.1.0"
