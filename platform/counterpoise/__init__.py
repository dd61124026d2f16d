"""Counterpoise repairs imbalanced or biased image datasets with synthetic images, and proves that it did."""

__version__ = "0.1.0"
