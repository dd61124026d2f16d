"""Evaluation: metrics of predictions, their intervals, and comparison of methods."""
