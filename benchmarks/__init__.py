"""Scripts that print a ratio against a named baseline of the same run, and dated result files."""
