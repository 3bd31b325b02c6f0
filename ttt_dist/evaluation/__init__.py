"""Evaluation: tasks, metrics, judges, and the pieces of the report."""
