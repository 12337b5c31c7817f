"""Classification metrics: answers by hand and parity with scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from selfexplain_jax.metrics import classification, mean
from selfexplain_jax.types import UserError

SCORES = jnp.asarray([[2.0, 1.0, -1.0], [0.5, 0.4, 0.3], [-1.0, -2.0, -3.0], [30.0, 40.0, 0.0]])
PROBABILITIES = jnp.asarray([[0.88, 0.73, 0.27], [0.62, 0.6, 0.57], [0.27, 0.12, 0.05], [1.0, 1.0, 0.5]])


def test_single_label_takes_the_highest_score_even_where_probabilities_are_saturated():
    decided = classification.decisions(SCORES, PROBABILITIES, multilabel=False)
    np.testing.assert_array_equal(decided, [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    label = jnp.asarray([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(classification.correct(decided, label), [1, 0, 1, 1])
    assert mean(classification.accuracy_sums(decided, label, jnp.ones(4))) == 0.75
    assert mean(classification.accuracy_sums(decided, label, jnp.asarray([1.0, 1, 0, 0]))) == 0.5


def test_multilabel_is_exact_match():
    decided = classification.decisions(SCORES, PROBABILITIES, multilabel=True)
    np.testing.assert_array_equal(decided, [[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]])
    label = jnp.asarray([[1.0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(classification.correct(decided, label), [1, 0, 1, 0])


def test_multilabel_f1_and_average_precision_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    label = (random.random((40, 4)) > 0.6).astype(np.float32)
    label[:, 3] = 0  # never present: no average precision, and F1 of 0
    probabilities = np.clip(label * 0.3 + random.random((40, 4)) * 0.7, 0, 1).astype(np.float32).round(1)
    decided = np.asarray(classification.decisions(probabilities, probabilities, multilabel=True))
    confusion = classification.label_confusion(decided, label, jnp.ones(40))
    macro, micro = classification.label_f1(confusion)
    for average, ours in (("macro", macro), ("micro", micro)):
        theirs = sklearn_metrics.f1_score(label, decided, average=average, zero_division=0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    theirs = sklearn_metrics.average_precision_score(label[:, :3], probabilities[:, :3], average="macro")
    np.testing.assert_allclose(classification.mean_average_precision(probabilities, label), theirs, rtol=1e-6)


def test_confusion_leaves_padding_out():
    decided, label = jnp.asarray([[1.0, 0], [1, 1]]), jnp.asarray([[1.0, 1], [0, 1]])
    np.testing.assert_array_equal(
        classification.label_confusion(decided, label, jnp.asarray([1.0, 0])), [[1, 0], [0, 0], [0, 1]]
    )


def test_average_precision_by_hand():
    # Ranked .9 (present), .8 (absent), .7 (present): (1 + 2/3) / 2.
    assert classification.mean_average_precision(
        np.asarray([[0.9], [0.8], [0.7]]), np.asarray([[1], [0], [1]])
    ) == pytest.approx(5 / 6)
    with pytest.raises(UserError, match="every label is empty"):
        classification.mean_average_precision(np.zeros((2, 3)), np.zeros((2, 3)))
