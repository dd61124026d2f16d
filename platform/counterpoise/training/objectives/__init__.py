"""Per-image losses and the risks that reduce them."""
