"""Attention over packed samples: one plan per batch, several kernels, the cache of decoding."""
