"""Bytes at keys, created once, whole or not at all; tables of images and views on them."""
