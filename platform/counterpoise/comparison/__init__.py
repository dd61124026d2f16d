"""Comparisons of methods: leaderboards and reproductions."""
