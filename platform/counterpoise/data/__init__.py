"""Real datasets: adapters, import, splits, imposed imbalance, tints and audit."""
