"""MLflow as a passive client: losing it loses no work."""
