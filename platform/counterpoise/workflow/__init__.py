"""Steps from a dataset to a report: where the domain packages meet."""
