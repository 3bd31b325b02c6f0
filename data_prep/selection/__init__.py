"""Which entries of a manifest are kept, and what becomes of their texts."""
