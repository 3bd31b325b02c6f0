"""Scores: error rates, text overlap, confidence intervals, how speech sounds."""
