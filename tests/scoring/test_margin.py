"""Similarities and margins against a worked case."""

import numpy as np

from counterpoise.scoring.margin import rivals_of, similarity_and_margin

TEXTS = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def test_a_worked_case():
    images = np.array([[1.0, 0.0], [0.8, 0.6]])
    similarity, margin = similarity_and_margin(images, TEXTS, 0, np.array([1, 2]))
    np.testing.assert_allclose(similarity, [1.0, 0.8])
    np.testing.assert_allclose(margin, [1.0 - 0.6, 0.8 - 0.96])


def test_without_rivals_the_lead_is_infinite():
    _, margin = similarity_and_margin(np.array([[1.0, 0.0]]), TEXTS[:1], 0, rivals_of(0, ["a"]))
    assert margin.tolist() == [np.inf]


def test_an_equal_prompt_is_no_rival():
    assert rivals_of(1, ["a", "b", "b", "c"]).tolist() == [0, 3]
