"""Margins and zero-shot verdicts against a worked case."""

import numpy as np

from counterpoise.scoring.margin import margin, nearest, rivals_of

TEXTS = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def test_a_worked_case():
    images = np.array([[1.0, 0.0], [0.8, 0.6]])
    np.testing.assert_allclose(margin(images, TEXTS, 0, np.array([1, 2])), [1.0 - 0.6, 0.8 - 0.96])


def test_without_rivals_the_lead_is_infinite():
    assert margin(np.array([[1.0, 0.0]]), TEXTS[:1], 0, rivals_of(0, ["a"])).tolist() == [np.inf]


def test_an_equal_prompt_is_no_rival():
    assert rivals_of(1, ["a", "b", "b", "c"]).tolist() == [0, 3]


def test_zero_shot_is_the_best_of_all_texts():
    images = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.95, 0.3122499]])
    cosines = images @ TEXTS.T
    assert nearest(images, TEXTS, 0, np.array([1, 2])).tolist() == cosines.argmax(axis=1).tolist() == [0, 2, 1, 0]


def test_the_own_text_wins_ties_and_loses_to_no_equal_one():
    texts = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    images = np.array([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    assert nearest(images, texts, 2, rivals_of(2, ["b", "a", "a"])).tolist() == [2, 0, 2]
    assert nearest(images, texts[:1], 0, rivals_of(0, ["b"])).tolist() == [0, 0, 0]


def test_no_images():
    assert nearest(np.empty((0, 2)), TEXTS, 0, np.array([1])).shape == (0,)
