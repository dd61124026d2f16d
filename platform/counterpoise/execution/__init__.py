"""Domain-independent execution: a graph of content-addressed nodes, the Ray cluster, devices."""
