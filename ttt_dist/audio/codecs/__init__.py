"""Speech tokenizers: the built-in one, and published ones behind the same interface."""
