"""The classifier that guides sampling, and the criteria that it computes."""
