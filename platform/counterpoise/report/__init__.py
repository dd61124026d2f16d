"""What a person reads in the end: one page, and the figures that go to MLflow."""
