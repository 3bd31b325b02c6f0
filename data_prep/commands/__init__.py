"""The commands of `python -m data_prep`, a module each."""
