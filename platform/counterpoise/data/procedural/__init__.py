"""A procedural world of shapes, drawn on demand."""
