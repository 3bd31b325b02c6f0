"""Manifests: entries, reading them and the tables that corpora come in, and what had to be left out."""
