"""A linear classifier on pooled features, which becomes a head whose maps are exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np

from cam_tf.networks.anatomy import Layer, dissect
from cam_tf.networks.graph import as_functional
from cam_tf.networks.stride import flattened

Kind = Literal["svm", "logistic"]
COSTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of standardised features


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on pooled features: decision value = features . weights + bias.

    Attributes:
        weights: (K, C) float32; of two classes C = 1, and positive values mean the second.
        bias: (C,) float32.
        classes: the labels, sorted.
        kind: "svm" or "logistic".
        cost: C, the inverse strength of regularisation, of standardised features.
        accuracy: (mean, standard deviation) over the folds of cross-validation, at that cost; None
            without cross-validation.
        network: the fingerprint of the network that made the features, if it was told.
    """

    weights: np.ndarray
    bias: np.ndarray
    classes: tuple
    kind: Kind
    cost: float
    accuracy: tuple[float, float] | None = None
    network: str | None = None

    def decision(self, features: np.ndarray) -> np.ndarray:
        """The decision values (N, C) of features (N, K).

        Raises:
            ValueError: features of another network.
        """
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise ValueError(
                f"features of shape {features.shape} are of another network: this classifier was "
                f"fitted on (N, {len(self.weights)})."
            )
        return features @ self.weights + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The label of each row of features."""
        values = self.decision(features)
        index = values[:, 0] > 0 if values.shape[1] == 1 else values.argmax(1)
        return np.asarray(self.classes)[index.astype(int)]


def fit_linear(
    features: np.ndarray,
    labels: Sequence,
    kind: Kind = "svm",
    *,
    C: float | None = None,  # noqa: N803 - the name that scikit-learn has for it
    folds: int = 5,
    balanced: bool = True,
    seed: int = 0,
    network: str | None = None,
) -> LinearHead:
    """Fits a linear classifier on pooled features.

    Features are standardised for the fit, and the scaling is then folded into the weights. A
    support vector machine is one-vs-rest, logistic regression multinomial; two classes have one
    decision value.

    Args:
        features: (N, K), see ``PooledFeatures``.
        labels: N labels of any kind that can be sorted.
        kind: ``"svm"``: linear, squared hinge loss; ``"logistic"``.
        C: the inverse strength of regularisation. Default: the best of ``COSTS`` by stratified
            cross-validation.
        folds: of the cross-validation; at least 2.
        balanced: classes weigh the same, whatever their numbers of images.
        seed: of the folds and the solver.
        network: ``PooledFeatures.fingerprint()``, so that ``attach`` can tell other networks.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: one class only, fewer images of a class than folds, features that are not finite
            or not (N, K), or an unknown kind.

    Source: Zhou et al., CVPR 2016, section 3.3.
    """
    features, labels = _checked(features, labels)
    if kind not in ("svm", "logistic"):
        raise ValueError(f"kind={kind!r}: use 'svm' or 'logistic'.")
    accuracy = None
    if C is None:
        _require_folds(labels, folds)
        means, deviations = _cross_validated(features, labels, kind, COSTS, folds, balanced, seed)
        best = int(np.argmax(means))
        C, accuracy = COSTS[best], (float(means[best]), float(deviations[best]))  # noqa: N806
    elif not C > 0:
        raise ValueError(f"C={C}: expected a positive number.")
    pipeline = _pipeline(kind, C, balanced, seed).fit(features, labels)
    scaler, fitted = pipeline[0], pipeline[-1]
    weights = fitted.coef_ / scaler.scale_
    bias = fitted.intercept_ - weights @ scaler.mean_
    return LinearHead(
        weights.T.astype(np.float32),
        bias.astype(np.float32),
        tuple(fitted.classes_.tolist()),
        kind,
        float(C),
        accuracy,
        network,
    )


def attach(model: keras.Model, head: LinearHead, layer: Layer | None = None) -> keras.Model:
    """Puts a linear classifier on the network that made its features.

    Returns a normal Keras model, images -> scores, which ``CAM``, ``boxes``, ``evaluate`` and the
    exports take: its feature maps, global average pooling, and a dense layer of the classifier's
    weights. The scores of an SVM are decision values; of logistic regression probabilities. For
    each class mean(CAM) + bias is the decision value.

    Args:
        model: the network; its layers are shared, not copied.
        head: of ``fit_linear``.
        layer: the feature maps that were pooled, as for ``PooledFeatures``.

    Raises:
        ValueError: features of another network; or maps inside a nested model that are not those
            that are pooled.
    """
    if head.network is not None:
        from cam_tf.discovery.features import PooledFeatures

        if PooledFeatures(model, layer).fingerprint() != head.network:
            raise ValueError(
                f"the classifier was fitted on features of another network than {model.name!r}, or "
                "of other weights: attach it to the one that made them."
            )
    parts = dissect(model, layer)
    maps = parts.graph.top_level_symbol(parts.feature_maps)
    if maps is None and layer is None:
        model = flattened(model)
        parts = dissect(model)
        maps = parts.graph.top_level_symbol(parts.feature_maps)
    if maps is None:
        raise ValueError(
            f"{parts.feature_maps.call.path!r} is inside a nested model, which Keras cannot build "
            "on: use the layer that is pooled (layer=None), or a flat model."
        )
    channels, (features, outputs) = maps.shape[-1], head.weights.shape
    if channels != features:
        raise ValueError(
            f"{model.name!r} has {channels} feature maps, and the classifier was fitted on "
            f"{features}: attach it to the network that made its features."
        )
    pooled = keras.layers.GlobalAveragePooling2D(name="discovery_pool")(maps)
    activation = None
    if head.kind == "logistic":
        activation = "sigmoid" if outputs == 1 else "softmax"
    dense = keras.layers.Dense(
        outputs, activation=activation, dtype="float32", name="discovery_head"
    )
    scores = dense(pooled)
    dense.set_weights([head.weights, head.bias])
    inputs = (as_functional(model) or parts.graph.function).inputs
    return keras.Model(inputs, scores, name=f"{model.name}_discovery")


@dataclass(frozen=True)
class Accuracy:
    """Accuracies over several splits.

    Attributes:
        values: one for each split.
        predictions: out of fold, a label for each image; None where the test images are given.
    """

    values: tuple[float, ...]
    predictions: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Over the splits."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The standard deviation over the splits; 0 of one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def linear_accuracy(
    features: np.ndarray,
    labels: Sequence,
    test: tuple[np.ndarray, Sequence] | None = None,
    *,
    kind: Kind = "svm",
    C: float | None = None,  # noqa: N803
    splits: int = 5,
    seed: int = 0,
) -> Accuracy:
    """The accuracy of a linear classifier on features that were not fitted to the task.

    Args:
        features: (N, K).
        labels: N labels.
        test: features and labels to test on. Default: stratified cross-validation; C is chosen
            anew in each split, on its training images.
        kind: see ``fit_linear``.
        C: see ``fit_linear``.
        splits: of the cross-validation.
        seed: of the splits.

    Raises:
        ValueError: see ``fit_linear``; test labels that training has not.
    """
    features, labels = _checked(features, labels)
    if test is not None:
        unknown = sorted(set(test[1]) - set(labels.tolist()))
        if unknown:
            raise ValueError(f"the test images have classes that training has not: {unknown[:5]}.")
        head = fit_linear(features, labels, kind, C=C, seed=seed)
        return Accuracy((float(np.mean(head.predict(test[0]) == np.asarray(test[1]))),))
    predictions, values = labels.copy(), []
    for train, held_out in stratified(labels, splits, seed):
        head = fit_linear(features[train], labels[train], kind, C=C, folds=3, seed=seed)
        predictions[held_out] = head.predict(features[held_out])
        values.append(float(np.mean(predictions[held_out] == labels[held_out])))
    return Accuracy(tuple(values), predictions)


def stratified(labels: np.ndarray, splits: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (training, test) indices of each split.

    Raises:
        ValueError: fewer images of a class than splits.
    """
    _require_folds(labels, splits)
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(splits, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(labels)), labels))


def _cross_validated(features, labels, kind, costs, folds, balanced, seed) -> tuple:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    search = GridSearchCV(
        _pipeline(kind, 1.0, balanced, seed),
        {"classify__C": list(costs)},
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        refit=False,
    ).fit(features, labels)
    return search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"]


def _pipeline(kind: Kind, cost: float, balanced: bool, seed: int):
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError(
            "fit_linear needs scikit-learn, which is not installed: "
            'pip install "cam-tf[discovery]".'
        ) from error
    options = {"C": cost, "class_weight": "balanced" if balanced else None, "random_state": seed}
    if kind == "svm":
        classifier = LinearSVC(**options, max_iter=20_000)
    else:
        classifier = LogisticRegression(**options, max_iter=2_000)
    return Pipeline([("scale", StandardScaler()), ("classify", classifier)])


def _checked(features, labels) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {features.shape} and labels {labels.shape} do not fit: expected (N, K) and "
            "N labels."
        )
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity: leave those images out.")
    if len(set(labels.tolist())) < 2:
        raise ValueError(
            f"all {len(labels)} images are of one class: a classifier needs two or more."
        )
    return features, labels


def _require_folds(labels: np.ndarray, folds: int) -> None:
    names, counts = np.unique(labels, return_counts=True)
    if folds < 2:
        raise ValueError(f"folds={folds}: at least 2 are needed.")
    if counts.min() < folds:
        least, name = int(counts.min()), names[counts.argmin()].item()
        raise ValueError(
            f"class {name!r} has {least} images, fewer than {folds} folds: give "
            f"folds={max(2, least)} or fewer, or C, which needs no cross-validation."
        )
