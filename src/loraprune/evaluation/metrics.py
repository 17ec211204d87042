"""Metrics of labelled data, and their standard errors.

Knows nothing about models. All but accuracy come from scikit-learn and SciPy, the extra `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraprune.errors import ConfigError

Values = NDArray[np.float64]
RESAMPLES = 200


def accuracy(predicted: Values, labels: Values) -> float:
    """Return the fraction of rows with the right class."""
    return float(np.mean(predicted == labels))


def f1(predicted: Values, labels: Values) -> float:
    """Return the F1 score of class 1, as GLUE takes it."""
    return float(
        _library("sklearn.metrics").f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0)
    )


def matthews_correlation(predicted: Values, labels: Values) -> float:
    """Return the correlation of predicted and true classes; 0 where all predictions are the same."""
    return float(_library("sklearn.metrics").matthews_corrcoef(labels, predicted))


def pearson(predicted: Values, labels: Values) -> float:
    """Return the linear correlation; 0 if one side is constant."""
    return _correlation("pearsonr", predicted, labels)


def spearman(predicted: Values, labels: Values) -> float:
    """Return the rank correlation; 0 if one side is constant."""
    return _correlation("spearmanr", predicted, labels)


def _correlation(name: str, predicted: Values, labels: Values) -> float:
    if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(getattr(_library("scipy.stats"), name)(predicted, labels).statistic)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    each.__name__: each for each in (accuracy, f1, matthews_correlation, pearson, spearman)
}


def standard_error(metric: str, predicted: Values, labels: Values) -> float | None:
    """Return the bootstrap deviation of a figure over rows drawn with replacement, by fixed draws; None for a single row.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, The Annals of Statistics 7 (1979).
    """
    if len(labels) < 2:
        return None
    draw = np.random.default_rng(0)
    places = (draw.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    return float(np.std([METRICS[metric](predicted[place], labels[place]) for place in places], ddof=1))


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"the metric of this data set needs {name.partition('.')[0]}, which is not installed: "
            "pip install 'loraprune[metrics]'"
        ) from None
