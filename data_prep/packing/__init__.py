"""Samples into packs of seq_len tokens."""
