"""Staged training: each stage has its images, objective, trainable parameters, length and initial weights."""
