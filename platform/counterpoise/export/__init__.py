"""Export of images, labels and provenance, in formats that other tools read."""
