"""Work as a graph of nodes, done once, where its resources are; knows no domain."""
