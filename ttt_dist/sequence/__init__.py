"""What a token sequence means: token classes, samples and spans, visibility, corruption, batches.

No model and no process group here: training, decoding and data preparation all stand on this package.
"""
