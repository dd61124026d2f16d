"""Prompts of each cell: from templates, grammars, files or language models."""
