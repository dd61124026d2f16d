"""Fits of single stages, in one process or several."""
