"""Deep feature reweighting against scikit-learn's own predictions, and what it does with small groups."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler, normalize

from counterpoise.config import Dfr, Training
from counterpoise.errors import DataError
from counterpoise.training.engine.dfr import balanced_draw, fit_dfr
from counterpoise.training.models import build_model, last_linear, with_normalized_head


def make_features(counts, seed=0, d=6, scale=1.0):
    """Features (n, d) of ``counts[label][group]`` images: one is the class's, one the group's, the others noise."""
    random = np.random.default_rng(seed)
    cells = [(y, g) for y, row in enumerate(counts) for g, n in enumerate(row) for _ in range(n)]
    labels, groups = np.array(random.permutation(cells)).T
    features = random.normal(0, 1, (len(labels), d)) + 3
    features[:, 0] += 1.5 * labels
    features[:, 1] += 4.0 * groups
    return (scale * features).astype(np.float32), labels, groups


def make_logistic(strength, seed=0):
    return LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", max_iter=10_000, random_state=seed)


def predict(head, features):
    return features @ head.weight.T + head.bias


def softmax(logits):
    return torch.from_numpy(logits).double().softmax(1).numpy()


def test_balanced_draws_have_as_many_of_each_cell_as_the_smallest():
    cells = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9])
    draws = [balanced_draw(cells, random) for random in (np.random.default_rng(0),) for _ in range(60)]
    for drawn in draws:
        assert len(set(drawn.tolist())) == 6
        assert {cell: int((cells[drawn] == cell).sum()) for cell in (2, 5, 9)} == {2: 2, 5: 2, 9: 2}
    assert {int(position) for drawn in draws for position in drawn} == set(range(9))


@pytest.mark.parametrize("normalized", [False, True])
def test_two_classes_are_scikit_learns_regression_on_standardised_features(normalized):
    # As many images of each cell: every draw is the whole, up to its order.
    features, labels, groups = make_features([[30, 30], [30, 30]])
    train, _, _ = make_features([[50, 5], [5, 50]], seed=1)
    settings = Dfr(strengths=[0.3], refits=3, normalize=normalized)
    head = fit_dfr(features, labels, groups, train, settings, 2, seed=0)
    if normalized:
        features, train = normalize(features), normalize(train)
    scaler = StandardScaler().fit(train.astype(np.float64))
    expected = make_logistic(0.3).fit(scaler.transform(features), labels)
    logits = predict(head, features)
    probabilities = expected.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(softmax(logits), probabilities, atol=2e-3)  # liblinear's tolerance
    np.testing.assert_array_equal(logits.argmax(1), expected.predict(scaler.transform(features)))
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-4)


def test_more_classes_are_scikit_learns_one_versus_rest():
    features, labels, groups = make_features([[20, 20], [20, 20], [20, 20]], scale=20)
    head = fit_dfr(features, labels, groups, features, Dfr(strengths=[1.0], refits=2), 3, seed=0)
    scaler = StandardScaler().fit(features.astype(np.float64))
    expected = OneVsRestClassifier(make_logistic(1.0)).fit(scaler.transform(features), labels)
    assert head.weight.shape == (3, 6)
    logits = predict(head, features)
    np.testing.assert_allclose(logits, expected.decision_function(scaler.transform(features)), atol=2e-2)
    sure = np.diff(np.sort(logits)[:, -2:])[:, 0] > 0.05
    np.testing.assert_array_equal(logits.argmax(1)[sure], expected.predict(scaler.transform(features))[sure])


def test_refits_are_averaged_over_their_draws():
    features, labels, groups = make_features([[40, 4], [4, 40]])
    head = fit_dfr(features, labels, groups, features, Dfr(strengths=[1.0], refits=4), 2, seed=3)
    singles = []
    random = np.random.default_rng([3, 1])  # the stream of the refits: a draw, then liblinear's order
    scaler = StandardScaler().fit(features.astype(np.float64))
    for _ in range(4):
        drawn = balanced_draw(2 * labels + groups, random)
        assert len(drawn) == 16
        fitted = make_logistic(1.0, int(random.integers(2**31))).fit(scaler.transform(features[drawn]), labels[drawn])
        singles.append(fitted.decision_function(scaler.transform(features)))
    logits = predict(head, features)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], np.mean(singles, axis=0), atol=1e-4)


def test_the_head_looks_at_the_class_where_plain_regression_looks_at_the_group():
    features, labels, groups = make_features([[400, 20], [20, 400]], d=4)
    head = fit_dfr(features, labels, groups, features, Dfr(refits=5), 2, seed=0)
    plain = make_logistic(1.0).fit(features.astype(np.float64), labels).coef_[0]
    weight = head.weight[1] - head.weight[0]
    assert abs(plain[1]) > 0.5 * abs(plain[0])
    assert abs(weight[1]) < 0.1 * abs(weight[0])


def test_the_strength_with_the_best_worst_group_is_chosen():
    features, labels, groups = make_features([[60, 20], [20, 60]])
    head = fit_dfr(features, labels, groups, features, Dfr(strengths=[1e-4, 1.0, 0.1], refits=1), 2, seed=0)
    assert [row["strength"] for row in head.tuning] == [1e-4, 1.0, 0.1]
    nothing, *others = head.tuning
    assert nothing["worst_group_accuracy"] == 0  # so strong a penalty leaves the intercept at most
    assert nothing["balanced_accuracy"] == 0.5
    best = max(others, key=lambda row: (row["worst_group_accuracy"], row["balanced_accuracy"]))
    assert (head.best_strength, head.score) == (best["strength"], best["worst_group_accuracy"])


def test_of_equal_strengths_the_first_is_chosen():
    features, labels, groups = make_features([[10, 10], [10, 10]])
    features[:, 0] += 100 * labels  # no strength makes a mistake
    head = fit_dfr(features, labels, groups, features, Dfr(strengths=[0.3, 3.0, 1.0], refits=1), 2, seed=0)
    assert {row["worst_group_accuracy"] for row in head.tuning} == {1.0}
    assert head.best_strength == 0.3


def test_groups_may_be_numbered_as_you_like():
    features, labels, groups = make_features([[12, 8], [9, 12]])
    settings = Dfr(strengths=[1.0, 0.1], refits=2)
    heads = [
        fit_dfr(features, labels, numbering, features, settings, 2, seed=0)
        for numbering in (groups, 2 * labels + groups, 7 * groups - 3)
    ]
    for head in heads[1:]:
        np.testing.assert_array_equal(head.weight, heads[0].weight)


def test_the_head_depends_on_the_seed_and_on_nothing_else():
    features, labels, groups = make_features([[30, 6], [6, 30]])
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (
        fit_dfr(features, labels, groups, features, Dfr(refits=3), 2, seed=seed) for seed in (0, 0, 1)
    )
    assert first.weight.tobytes() == again.weight.tobytes()
    assert first.bias.tobytes() == again.bias.tobytes()
    assert first.tuning == again.tuning
    assert first.weight.tobytes() != other.weight.tobytes()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_two_images_of_a_cell_are_enough_for_every_seed():
    features, labels, groups = make_features([[20, 2], [3, 20]])
    for seed in range(10):
        head = fit_dfr(features, labels, groups, features, Dfr(strengths=[1.0], refits=1), 2, seed=seed)
        assert np.isfinite(head.weight).all()


def test_a_single_image_of_a_cell_is_too_few():
    features, labels, groups = make_features([[20, 1], [5, 20]])
    with pytest.raises(DataError, match="1 image of class number 0, group 1"):
        fit_dfr(features, labels, groups, features, Dfr(), 2, seed=0)


def test_a_class_without_images_is_an_error():
    features, labels, groups = make_features([[20, 5], [0, 0], [5, 20]])
    with pytest.raises(DataError, match="none of class number 1, 3"):
        fit_dfr(features, labels, groups, features, Dfr(), 4, seed=0)


def test_a_feature_that_never_moves_gets_no_weight():
    features, labels, groups = make_features([[10, 10], [10, 10]])
    features[:, 3] = 7
    head = fit_dfr(features, labels, groups, features, Dfr(strengths=[1.0], refits=1), 2, seed=0)
    assert head.weight[:, 3].tolist() == [0, 0]
    assert np.isfinite(head.bias).all()


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
def test_a_normalised_head_takes_features_of_length_1(backbone):
    model = build_model(Training(backbone=backbone), 3, seed=0).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before = torch.get_rng_state()
    normalized = with_normalized_head(copy.deepcopy(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(normalized.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        logits, features = normalized.logits_and_features(images)
        torch.testing.assert_close(features, model.logits_and_features(images)[1])
        _, head = last_linear(model.backbone)
        torch.testing.assert_close(logits, head(torch.from_numpy(normalize(features.numpy()))))
        assert not torch.allclose(logits, model(images))


def test_a_head_without_bias_gets_one():
    model = with_normalized_head(build_model(Training(head="cosine"), 3, seed=0))
    assert last_linear(model.backbone)[1].bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("normalized", [False, True])
def test_a_fitted_head_gives_the_classifiers_logits(normalized):
    model = build_model(Training(image_size=16), 2, seed=0).eval()
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (24, 3, 16, 16), dtype=np.uint8))
    labels, groups = np.repeat([0, 1], 12), np.tile([0, 1], 12)
    with torch.no_grad():
        features = model.logits_and_features(images)[1].numpy()
    head = fit_dfr(features, labels, groups, features, Dfr(refits=1, normalize=normalized), 2, seed=0)
    if normalized:
        with_normalized_head(model)
    _, last = last_linear(model.backbone)
    last.load_state_dict({"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)})
    with torch.no_grad():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, predict(head, normalize(features) if normalized else features), atol=1e-4)
