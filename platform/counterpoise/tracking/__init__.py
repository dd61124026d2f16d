"""Tracking in MLflow, as a passive client: losing the server loses no work."""
