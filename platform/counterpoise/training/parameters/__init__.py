"""Which parameters train, and the gradient masks that choose them."""
