"""Selection of a plan's images from a pool: strategies, filters, and sampling of missing images."""
