"""Scoring of images: CLIP, feature extractors, margins and realism."""
