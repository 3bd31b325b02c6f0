"""Offline jobs from a corpus on disk to packed shards: manifest, utterances, encode, compose, pack, and inspection."""
