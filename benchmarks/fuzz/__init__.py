"""Mutated files, settings and requests, given to everything that reads what others wrote."""
