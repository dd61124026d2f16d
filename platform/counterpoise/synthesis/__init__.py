"""From a plan to images: prompts, addresses, the pool and what a plan takes from it."""
