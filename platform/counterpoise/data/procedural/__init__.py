"""Procedural world of shapes, drawn on demand."""
