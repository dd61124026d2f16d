"""Which images of a pool a plan takes, and why not the others."""
