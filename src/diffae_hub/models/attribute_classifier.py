"""AttributeClassifier: latent code -> attributes, and the direction in which an attribute grows (official DiffAE)."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from accelerate.utils import align_module_device
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .layers import LatentStatisticsMixin, check_configuration
from .safetensors_only import SafetensorsOnlyMixin

METHODS = ("logistic", "svm", "means", "ridge")


@dataclass
class AttributeClassifierOutput(BaseOutput):
    """`logits`: (B, num_attributes); above 0 for attributes that are more likely present than not."""

    logits: torch.Tensor


class AttributeClassifier(LatentStatisticsMixin, SafetensorsOnlyMixin, ModelMixin, ConfigMixin):
    """A linear classifier of attributes on normalised latent codes.

    It normalises codes with the mean and standard deviation of the training codes, which are saved with it.

    Args:
        latent_dim: Width of the latent code.
        num_attributes: Number of attributes. The official classifiers have the 40 of CelebA.
        attribute_names: In the order of the rows; None for attributes without names.
        attribute_scores: What [`~AttributeClassifier.fit`] measured on held-out codes, one dictionary per attribute.
        own_directions: Whether edits follow separate directions instead of the classifier's weights.
    """

    __module__ = "diffae_hub"

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 512,
        num_attributes: int = 40,
        attribute_names: Sequence[str] | None = None,
        attribute_scores: Sequence[dict[str, float]] | None = None,
        own_directions: bool = False,
    ) -> None:
        super().__init__()
        check_configuration(self.config)
        if attribute_names is not None and not len(attribute_names) == len(set(attribute_names)) == num_attributes:
            raise ValueError(f"attribute_names must be {num_attributes} different names, got {list(attribute_names)}")
        self.linear = nn.Linear(latent_dim, num_attributes)
        self.register_latent_statistics(latent_dim)
        if own_directions:
            self.register_buffer("directions", torch.zeros(num_attributes, latent_dim))

    @classmethod
    def fit(
        cls,
        codes: Any,
        labels: Any,
        names: Sequence[str] | None = None,
        *,
        method: str = "logistic",
        held_out: float = 0.2,
        groups: Any = None,
        matched_by: Any = None,
        alternatives: Sequence[str] = (),
        regularization: float = 1.0,
        seed: int = 0,
    ) -> Self:
        """Fits a classifier to labelled codes with scikit-learn.

        The best direction to classify an attribute may change other things, too: bearded people are also people. With
        `matched_by`, edits follow the mean difference between codes with and without the attribute that agree in
        everything else, if there are such pairs.

        `config.attribute_scores` are measured on held-out codes, after a fit to the others: "accuracy" and "auroc", or
        "r2". They are empty for an attribute that is too rare to be in both parts. The result is fitted to all codes.

        Args:
            codes: (N, latent_dim), as the encoder gives them.
            labels: (N,) classes, (N, A) of 0 and 1, or numbers for `method="ridge"`.
            names: One per attribute; by default the classes, or "attribute 0", ...
            method: "logistic" (binary cross-entropy, the official recipe), "svm" (linear support vectors), "means"
                (from the mean code without the attribute to the one with it) or "ridge" (numbers such as an age).
            held_out: Share of the codes to measure on.
            groups: (N,) codes of the same group are on the same side of the split.
            matched_by: (N,) what each code shows apart from its attributes. Codes are compared if they agree in this
                and in all other labels.
            alternatives: Names of attributes that exclude each other, such as skin tones. Codes that are compared for
                one of them may differ in the others. Classes always exclude each other.
            regularization: Strength of the penalty on the weights, in scikit-learn's scale.
            seed: Seed of the split.
        """
        from sklearn.model_selection import GroupShuffleSplit

        normalized, mean, std = _normalized(codes)
        is_one_of_classes = np.ndim(labels) == 1
        labels, names = _attributes(np.asarray(labels), names, method, len(normalized))
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {held_out}")
        if not regularization > 0:
            raise ValueError(f"regularization must be above 0, got {regularization}")
        groups = np.arange(len(normalized)) if groups is None else np.asarray(groups)
        splitter = GroupShuffleSplit(1, test_size=held_out, random_state=seed)
        try:
            train, test = next(splitter.split(normalized, groups=groups))
        except ValueError as error:
            raise ValueError(f"held_out and groups must leave codes on both sides, got {held_out}: {error}") from error
        rows, scores = [], []
        for column, name in zip(labels.T, names, strict=True):
            if method != "ridge" and len(np.unique(column)) < 2:
                raise ValueError(f"labels must have both kinds of {name!r}, got one kind")
            scores.append({})
            if method == "ridge" or all(len(np.unique(column[part])) == 2 for part in (train, test)):
                weight, bias = _fit(method, normalized[train], column[train], regularization)
                scores[-1] = _score(normalized[test] @ weight + bias, column[test], method)
            rows.append(_fit(method, normalized, column, regularization))
        weight, bias = (np.stack(parts) for parts in zip(*rows, strict=True))
        directions = None
        if alternatives and matched_by is None:
            raise ValueError(f"alternatives belong to matched_by, which is not given, got {list(alternatives)}")
        if matched_by is not None:
            matched_by = np.asarray(matched_by).tolist()
            if method == "ridge" or len(matched_by) != len(labels):
                raise ValueError(f"matched_by must be one per code, {len(labels)}, of labels 0 and 1, not for 'ridge'")
            if not {*alternatives} <= {*names}:
                raise ValueError(f"alternatives must be some of {names}, got {list(alternatives)}")
            exclusive = np.array([name in alternatives or is_one_of_classes for name in names])
            directions = _matched_directions(normalized, labels, matched_by, exclusive, weight)
        return cls._fitted(weight, bias, mean, std, names, scores, directions)

    @classmethod
    def principal_directions(cls, codes: Any, num_directions: int = 10) -> Self:
        """Finds the directions in which normalised codes (N, latent_dim) vary most: "component 0", "component 1", ...

        As in GANSpace (Haerkoenen et al. 2020). `config.attribute_scores` has the share of the "variance" of each.
        """
        from sklearn.decomposition import PCA

        normalized, mean, std = _normalized(codes)
        if not 1 <= num_directions <= min(normalized.shape):
            raise ValueError(f"num_directions must be between 1 and {min(normalized.shape)}, got {num_directions}")
        pca = PCA(num_directions, svd_solver="full").fit(normalized)
        names = [f"component {index}" for index in range(num_directions)]
        scores = [{"variance": float(share)} for share in pca.explained_variance_ratio_]
        return cls._fitted(pca.components_, np.zeros(num_directions), mean, std, names, scores)

    @classmethod
    def _fitted(
        cls,
        weight: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        names: list[str],
        scores: list[dict],
        directions: np.ndarray | None = None,
    ) -> Self:
        classifier = cls(weight.shape[1], len(weight), names, scores, directions is not None)
        state = {"linear.weight": weight, "linear.bias": bias, "latent_mean": mean, "latent_std": std}
        state |= {} if directions is None else {"directions": directions}
        classifier.load_state_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in state.items()})
        return classifier.eval()

    def forward(
        self, latent_code: torch.Tensor, return_dict: bool = True
    ) -> AttributeClassifierOutput | tuple[torch.Tensor]:
        """The logits, (B, num_attributes), of codes as the encoder gives them; a sigmoid makes them probabilities."""
        logits = self.linear(self.normalize(latent_code))
        return AttributeClassifierOutput(logits=logits) if return_dict else (logits,)

    @torch.no_grad()
    @apply_forward_hook
    def edit(self, latent_code: torch.Tensor, attribute: int | str, strength: float = 0.3) -> torch.Tensor:
        """Moves codes along an attribute: denormalise(normalise(z) + strength sqrt(latent_dim) w / |w|).

        `attribute` is an index or a name, and w is its direction: its row of the weight, or of the own directions if
        there are any. The official notebooks use a strength of 0.3; a negative strength removes the attribute. Codes
        are (B, latent_dim), as the encoder gives them. There is no gradient.
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength}")
        step = strength * math.sqrt(self.config.latent_dim) * self.direction(attribute)
        return self.denormalize(self.normalize(latent_code) + step)

    @torch.no_grad()
    def direction(self, attribute: int | str) -> torch.Tensor:
        """w / |w|, (latent_dim,), along which normalised codes get more of an attribute, an index or a name."""
        names, indices = list(self.config.attribute_names or ()), range(self.config.num_attributes)
        if attribute not in names and attribute not in indices:
            raise ValueError(f"attribute must be one of {names or list(indices)}, got {attribute!r}")
        index = names.index(attribute) if attribute in names else attribute
        if self.config.own_directions:
            return nn.functional.normalize(self.directions[index], dim=0)
        with align_module_device(self.linear):  # sequential offloading keeps the weight elsewhere between calls
            return nn.functional.normalize(self.linear.weight[index], dim=0)


def _normalized(codes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalises codes (N, latent_dim), in float64. Returns them, their mean and their standard deviation."""
    codes = codes.detach().cpu().double() if isinstance(codes, torch.Tensor) else codes
    codes = np.asarray(codes, dtype=np.float64)
    if codes.ndim != 2 or len(codes) < 2:
        raise ValueError(f"codes must have shape (at least 2, latent_dim), got {codes.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite, got NaN or infinity")
    mean, std = codes.mean(axis=0), codes.std(axis=0).clip(min=1e-6)
    return (codes - mean) / std, mean, std


def _attributes(
    labels: np.ndarray, names: Sequence[str] | None, method: str, count: int
) -> tuple[np.ndarray, list[str]]:
    """Converts labels to (N, A), float64, with a name for each column."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if len(labels) != count:
        raise ValueError(f"labels must be one per code, {count}, got {len(labels)}")
    if labels.ndim == 1 and method != "ridge":
        classes = np.unique(labels)
        if len(classes) == 2:
            classes = classes[1:]
        labels = (labels[:, None] == classes).astype(np.float64)
        default = [str(value) for value in classes]
    else:
        labels = labels.reshape(count, -1).astype(np.float64)
        default = [f"attribute {index}" for index in range(labels.shape[1])]
    if not np.isfinite(labels).all() or (method != "ridge" and not np.isin(labels, (0, 1)).all()):
        raise ValueError("labels must be finite, and 0 or 1 unless method='ridge'")
    names = default if names is None else list(names)
    if len(names) != labels.shape[1]:
        raise ValueError(f"names must be {labels.shape[1]} names, one per attribute, got {names}")
    return labels, names


def _matched_directions(
    codes: np.ndarray, labels: np.ndarray, matched_by: Sequence[Any], exclusive: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Mean differences (A, latent_dim) within groups that differ in one label only; without such groups, its weight.

    A group of n codes with the label and m without counts n m / (n + m), the inverse variance of its difference.
    """
    directions = weight.copy()
    for index in range(labels.shape[1]):
        groups: dict[Any, tuple[list[int], list[int]]] = {}
        equal = ~exclusive if exclusive[index] else np.arange(labels.shape[1]) != index
        for row, key in enumerate(zip(matched_by, map(tuple, labels[:, equal]), strict=True)):
            groups.setdefault(key, ([], []))[int(labels[row, index])].append(row)
        pairs = [(without, having) for without, having in groups.values() if without and having]
        if pairs:
            differences = [codes[having].mean(axis=0) - codes[without].mean(axis=0) for without, having in pairs]
            sizes = [len(having) * len(without) / (len(having) + len(without)) for without, having in pairs]
            directions[index] = np.average(differences, axis=0, weights=sizes)
    return directions


def _fit(method: str, codes: np.ndarray, labels: np.ndarray, regularization: float) -> tuple[np.ndarray, float]:
    """Fits one linear function and returns its weight and bias."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.svm import LinearSVC

    if method == "means":
        with_it, without = codes[labels == 1].mean(axis=0), codes[labels == 0].mean(axis=0)
        direction = with_it - without
        return direction, float(-direction @ (with_it + without) / 2)
    if method == "logistic":
        model = LogisticRegression(C=1 / regularization, max_iter=500)
    elif method == "svm":
        model = LinearSVC(C=1 / regularization, dual=len(codes) < codes.shape[1], random_state=0, max_iter=20_000)
    else:
        model = Ridge(alpha=regularization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a direction is good enough before the last digit has converged
        model.fit(codes, labels)
    return model.coef_.ravel(), float(np.ravel(model.intercept_)[0])


def _score(outputs: np.ndarray, labels: np.ndarray, method: str) -> dict[str, float]:
    from sklearn.metrics import r2_score, roc_auc_score

    if method == "ridge":
        return {"r2": float(r2_score(labels, outputs))} if len(np.unique(labels)) > 1 else {}
    accuracy = float(((outputs > 0) == (labels == 1)).mean())
    return {"accuracy": accuracy, "auroc": float(roc_auc_score(labels, outputs))}
