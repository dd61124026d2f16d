"""Reports: the page of a run, the leaderboard of a comparison, and the figures logged to MLflow."""
