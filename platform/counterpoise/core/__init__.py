"""Helpers without a domain noun in them: digests, progress, environment, plugins, model sources."""
