"""Pools: addressed, immutable shards of synthetic images, and the actors that sample them."""
