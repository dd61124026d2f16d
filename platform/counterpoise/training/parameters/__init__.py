"""Trainable parameters of a stage, and the gradient masks that select them."""
