"""Packed shards, the order in which packs are read, and the loader that turns packs into batches."""
