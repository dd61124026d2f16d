"""Synthesis: prompts, feedback, the pool of synthetic images, and the selection of a plan's images from it."""
