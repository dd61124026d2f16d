"""Generators: diffusion pipelines, image conditions and feedback guidance."""
