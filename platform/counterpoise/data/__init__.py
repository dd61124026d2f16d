"""Where real images come from, how they are made imbalanced on purpose, and what is wrong with them."""
