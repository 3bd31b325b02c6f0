"""Checkpoints: complete or invisible, readable in any layout, and their ways to other programs."""
