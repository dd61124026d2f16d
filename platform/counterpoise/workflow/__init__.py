"""Steps from a dataset to a report; the only package that combines the domain packages."""
