"""Classifiers that are computed from class statistics of features instead of trained.

Each observes the features of every training image once, task after task, and keeps sums in float64, whose size does not
depend on the number of images. `SUMS` are all that it needs to go on, or to score images: a checkpoint holds them.

Shapes: n images, D features, C classes seen, K classes of a task, M width of the random projection.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from backbone.heads import projection
from utils.readouts import LDA, NCM, PREFIX, RANPAC, label_of, parts_of
from utils.streams import derive, generator

SHRINKAGE = 0.1  # of lda's covariance
WIDTH, EXPANSION = 1000, 8  # M is the first, but at most so many times D
RIDGES = tuple(10.0**power for power in range(-8, 9))  # among which ranpac chooses
FITTED = 0.8  # share of a task's images of each class with which ranpac's ridges are fitted; the others choose
ROWS = 4096  # images that are projected at a time


class Readout(Protocol):
    """A classifier on features.

    Args:
        seed: Of the run.
        width: D.
    """

    def __init__(self, seed: int, width: int) -> None: ...

    @property
    def classes(self) -> int:
        """Number of classes observed, C."""
        ...

    @property
    def weights(self) -> Tensor:
        """The factors of the scores: of the features (D, C), or of their projection (M, C)."""
        ...

    def observe(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Take all training images of a task: features (n, D), labels (n,), and C with the classes of the task."""

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of images (n, D) for every class observed, (n, C), float64."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums, in float64."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums of another readout of the same kind, seed and width."""


class _Sums:
    """Sums over images that are kept as attributes."""

    SUMS: ClassVar[tuple[str, ...]]  # names of the attributes; those of `SYMMETRIC` are stored as a triangle
    SYMMETRIC: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Tensor]:
        values = {name: getattr(self, name) for name in self.SUMS}
        return {name: triangle(value) if name in self.SYMMETRIC else value for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.SUMS:
            setattr(self, name, square(state[name]) if name in self.SYMMETRIC else state[name].clone())


class _ClassSums(_Sums):
    """Counts (C,) and sums (C, D) of every class. A linear map of the features maps the sums too."""

    SUMS: ClassVar[tuple[str, ...]] = ("counts", "sums")

    def __init__(self, seed: int, width: int) -> None:
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.sums = torch.zeros(0, width, dtype=torch.float64)

    @property
    def classes(self) -> int:
        return len(self.counts)

    @property
    def means(self) -> Tensor:  # (C, D)
        """Class means; NaN for a class without an image."""
        return self.sums / self.counts[:, None]

    def observe(self, features: Tensor, labels: Tensor, classes: int) -> None:
        targets, added = one_hot(labels, classes).to(torch.float64), classes - self.classes  # (n, C)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(added)]) + targets.sum(dim=0)
        self.sums = torch.cat([self.sums, self.sums.new_zeros(added, self.sums.shape[1])])
        self.sums = self.sums + targets.T @ features.to(torch.float64)


class NearestMean(_ClassSums):
    """`ncm`: the cosine of the features and each class mean."""

    @property
    def weights(self) -> Tensor:  # (D, C)
        """Class means of length 1; NaN for a class without an image."""
        return normalize(self.means).T

    def scores(self, features: Tensor) -> Tensor:
        return _known(normalize(features.to(torch.float64)) @ self.weights)


class Discriminant(_ClassSums):
    """`lda`: linear discriminant analysis with one shrunk covariance for all classes, and equal priors.

    The covariance is (1 - s) S + s tr(S) / D I, with S the covariance within classes (divided by n - C, or 1) and s
    `SHRINKAGE`. The form is that of streaming LDA (arXiv 1909.01520) with a target of the scale of S.
    """

    SUMS: ClassVar[tuple[str, ...]] = ("counts", "sums", "moment")
    SYMMETRIC: ClassVar[tuple[str, ...]] = ("moment",)

    def __init__(self, seed: int, width: int) -> None:
        super().__init__(seed, width)
        self.moment = torch.zeros(width, width, dtype=torch.float64)  # sum of x x^T

    def observe(self, features: Tensor, labels: Tensor, classes: int) -> None:
        super().observe(features, labels, classes)
        x = features.to(torch.float64)
        self.moment = symmetric(self.moment + x.T @ x)

    @property
    def weights(self) -> Tensor:  # (D, C)
        return torch.linalg.solve(self.covariance, self.means.nan_to_num().T)

    @property
    def covariance(self) -> Tensor:  # (D, D)
        """The shrunk covariance within classes."""
        seen = self.counts > 0
        means = self.means[seen]
        within = self.moment - means.T @ (self.counts[seen][:, None] * means)
        within = within / max(1.0, float(self.counts.sum()) - int(seen.sum()))
        scale = within.diagonal().mean()
        return (1 - SHRINKAGE) * within + SHRINKAGE * scale * torch.eye(len(within), dtype=torch.float64)

    def scores(self, features: Tensor) -> Tensor:
        weights = self.weights
        bias = -(self.means.T * weights).sum(dim=0) / 2
        return _known(features.to(torch.float64) @ weights + bias)


class RandomProjection(_Sums):
    """`ranpac`: ridge regression to one-hot targets on ReLU of a random projection (RanPAC, arXiv 2307.02251).

    The projection (D, M) is standard normal, drawn from the stream (seed, "ranpac"). The ridge is chosen anew in each
    task: among `RIDGES` the one with the least squared error on a fifth of the task's training images, drawn for each
    class from a stream of the task, when it is fitted to the others.
    """

    SUMS: ClassVar[tuple[str, ...]] = ("gram", "products", "ridge")
    SYMMETRIC: ClassVar[tuple[str, ...]] = ("gram",)

    def __init__(self, seed: int, width: int) -> None:
        self.seed = seed
        self.width = min(WIDTH, EXPANSION * width)
        self.projection = projection(draw(seed), width, self.width)
        self.gram = torch.zeros(self.width, self.width, dtype=torch.float64)  # sum of h h^T
        self.products = torch.zeros(self.width, 0, dtype=torch.float64)  # sum of h y^T, (M, C)
        self.ridge = torch.ones(1, dtype=torch.float64)

    @property
    def classes(self) -> int:
        return self.products.shape[1]

    def observe(self, features: Tensor, labels: Tensor, classes: int) -> None:
        known, h = self.classes, self.project(features)
        targets = one_hot(labels, classes).to(torch.float64)  # (n, C)
        self.products = torch.cat([self.products, self.products.new_zeros(self.width, classes - known)], dim=1)
        self.products = self.products + h.T @ targets
        self.gram = symmetric(self.gram + h.T @ h)
        chosen = self.held_out(labels, known)
        if 0 < int(chosen.sum()) < len(labels):
            pairs = h[~chosen], targets[~chosen, known:], h[chosen], targets[chosen, known:]
            self.ridge = torch.tensor([best_ridge(*pairs)], dtype=torch.float64)

    def held_out(self, labels: Tensor, known: int) -> Tensor:  # (n,)
        """Return which images of a task choose the ridge; of a class of one image none does."""
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        draws = generator(self.seed, "ranpac", "ridge", known)
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=draws)]
            chosen[rows[max(1, int(FITTED * len(rows))) :]] = True
        return chosen

    def project(self, features: Tensor) -> Tensor:  # (n, D) -> (n, M)
        """Return ReLU of the projected features, float64."""
        return (features.to(torch.float64) @ self.projection).relu_()

    @property
    def weights(self) -> Tensor:  # (M, C)
        regularised = self.gram + self.ridge * torch.eye(self.width, dtype=torch.float64)
        return torch.linalg.solve(regularised, self.products)

    def scores(self, features: Tensor) -> Tensor:
        weights = self.weights
        return torch.cat([self.project(part) @ weights for part in features.split(ROWS)])


def draw(seed: int) -> int:
    """Return the seed of the projection of `ranpac` in a run of this seed: 32 bits, of which torch uses no more."""
    return derive(seed, "ranpac") % 2**32


def best_ridge(h: Tensor, targets: Tensor, chosen: Tensor, wanted: Tensor) -> float:
    """Return the ridge whose regression of `targets` (n, K) on `h` (n, M) has the least squared error on other images.

    The regression is computed for all ridges from one eigendecomposition, of the smaller of h h^T and h^T h.
    """
    if len(h) <= h.shape[1]:
        values, vectors = torch.linalg.eigh(h @ h.T)
        left, right = chosen @ (h.T @ vectors), vectors.T @ targets
    else:
        values, vectors = torch.linalg.eigh(h.T @ h)
        left, right = chosen @ vectors, vectors.T @ (h.T @ targets)
    values = values.clamp(min=0)[:, None]
    errors = [float((left @ (right / (values + ridge)) - wanted).square().mean()) for ridge in RIDGES]
    return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]


def _known(scores: Tensor) -> Tensor:
    """Return scores in which a class without training images is never chosen."""
    return scores.nan_to_num(nan=-torch.inf)


def symmetric(matrix: Tensor) -> Tensor:
    """Return a matrix whose lower triangle is its upper one, as it is stored."""
    return matrix.triu() + matrix.triu(1).T


def triangle(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix as a vector."""
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def square(values: Tensor) -> Tensor:
    """Return the symmetric matrix of a triangle."""
    side = int((2 * len(values)) ** 0.5)
    matrix = values.new_zeros(side, side)
    matrix[tuple(torch.triu_indices(side, side))] = values
    return matrix + matrix.triu(1).T


KINDS: dict[str, type[Readout]] = {NCM: NearestMean, LDA: Discriminant, RANPAC: RandomProjection}


def _place(label: str) -> tuple[str, str]:
    """Return the place of a label among others, as those of a file have another order: by side, then by name."""
    return parts_of(label)[::-1]


class ReadoutSet:
    """The readouts of a run by label: each of `names` on every side, see `utils.readouts`.

    Args:
        names: Of readouts.
        seed: Of the run.
        width: D.
    """

    def __init__(self, names: Sequence[str], seed: int, width: int) -> None:
        self.names, self.seed, self.width = names, seed, width
        self.members: dict[str, Readout] = {}

    def observe(self, features: Mapping[str, Tensor], labels: Tensor, known: int, classes: int) -> None:
        """Take the training images of a task: features (n, D) by side, labels (n,).

        A readout that has not observed all `known` classes of earlier tasks is dropped.
        """
        if not known:
            made = [label_of(name, side) for side in features for name in self.names]
            self.members = {
                label: KINDS[parts_of(label)[0]](self.seed, self.width) for label in sorted(made, key=_place)
            }
        self.members = {
            label: readout
            for label, readout in self.members.items()
            if readout.classes == known and parts_of(label)[1] in features
        }
        for label, readout in self.members.items():
            readout.observe(features[parts_of(label)[1]], labels, classes)

    def predict(self, features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the predicted classes (n,) of images by label, given their features (n, D) by side."""
        sides = {label: parts_of(label)[1] for label in self.members}
        return {
            label: self.members[label].scores(features[side]).argmax(dim=1).numpy()
            for label, side in sides.items()
            if side in features
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums of all readouts, under `PREFIX`."""
        return {
            f"{PREFIX}{label}.{name}": value
            for label, readout in self.members.items()
            for name, value in readout.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take those of `names` that a checkpoint holds; raise ValueError if one does not fit the features."""
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(PREFIX):
                label, _, name = key.removeprefix(PREFIX).rpartition(".")
                states.setdefault(label, {})[name] = value.to(torch.float64)
        self.members = {}
        for label, state in sorted(states.items(), key=lambda item: _place(item[0])):
            if (kind := parts_of(label)[0]) in self.names:
                readout = KINDS[kind](self.seed, self.width)
                try:
                    readout.load_state_dict(state)
                    readout.scores(torch.zeros(1, self.width))
                except (KeyError, RuntimeError, IndexError) as error:
                    raise ValueError(f"its readout {label} is damaged or of another width: {error}") from None
                self.members[label] = readout
