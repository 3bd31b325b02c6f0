"""The settings of a run: every section with its keys, their ranges and what they mean."""
