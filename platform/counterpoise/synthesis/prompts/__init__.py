"""Prompts of each cell: templates, grammars, files, language models."""
