"""Classifiers' scores: metrics from predictions, their intervals, and methods against each other."""
