"""How good a classifier is, for whom, and how sure that is."""

from counterpoise.evaluation.scores import Scores, Summary, evaluate, summarize

__all__ = ["Scores", "Summary", "evaluate", "summarize"]
