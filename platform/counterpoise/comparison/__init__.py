"""Methods compared: leaderboards, equal-compute baselines, reproductions."""
