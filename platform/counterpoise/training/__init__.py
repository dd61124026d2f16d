"""Training is a list of stages: on which images, with which objective, for how long, from which weights."""
