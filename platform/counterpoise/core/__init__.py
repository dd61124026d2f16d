"""Domain-independent helpers: digests, progress, environment, plugins, model sources."""
