"""Classifier alignment: train the head on samples of class Gaussians (SLCA, arXiv 2303.05118).

After a task every class seen so far is represented by a normal distribution of its features, and the head learns to
tell samples of all of them apart. So it sees old classes again without their images.

Shapes: n images, D features, C classes seen, C_all classes of the head, M samples a class.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbone.heads import ProjectedHead
from models.readouts import square, triangle
from utils.readouts import ALIGNMENT
from utils.streams import generator

JITTER = 1e-4  # times the mean variance, on the diagonal of a covariance: it is singular if images are few
TEMPERATURE = 0.1  # of SLCA's logit normalisation
MOMENTUM = 0.9


class Settings(NamedTuple):
    """How the head is trained: epochs, M, the initial learning rate of a cosine schedule, and weight decay."""

    epochs: int
    samples: int
    lr: float
    weight_decay: float


class ClassGaussians:
    """Mean and covariance of the features of every class, float32: D (D + 3) / 2 numbers a class.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self.means = torch.zeros(0, width)  # (C, D); NaN for a class without an image
        self.covariances = torch.zeros(0, width * (width + 1) // 2)  # (C, D (D + 1) / 2), upper triangles

    @property
    def classes(self) -> int:
        return len(self.means)

    def observe(self, features: Tensor, labels: Tensor, classes: range) -> None:
        """Take all training images of new classes: features (n, D), labels (n,)."""
        groups = [features[labels == label].to(torch.float64) for label in classes]
        means = [x.mean(dim=0) for x in groups]
        centred = [x - mean for x, mean in zip(groups, means, strict=True)]
        covariances = [triangle(x.T @ x / max(1, len(x) - 1)) for x in centred]
        self.means = torch.cat([self.means, torch.stack(means).float()])
        self.covariances = torch.cat([self.covariances, torch.stack(covariances).float()])

    def factors(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield label, mean (D,) and the Cholesky factor (D, D) of the covariance of every class with images."""
        for label, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            if bool(mean.isfinite().all()):
                full = square(covariance.to(torch.float64))
                full.diagonal().add_(JITTER * full.diagonal().mean())
                yield label, mean, (torch.linalg.cholesky(full) if full.any() else full).float()

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{ALIGNMENT}means": self.means, f"{ALIGNMENT}covariances": self.covariances}

    def load_state_dict(self, tensors: Mapping[str, Tensor], classes: int) -> None:
        """Take the tensors of a checkpoint; raise ValueError if they are not of so many classes and this width."""
        means, covariances = (tensors.get(name, torch.zeros(0)) for name in self.state_dict())
        if means.shape != (classes, *self.means.shape[1:]) or covariances.shape != (
            classes,
            *self.covariances.shape[1:],
        ):
            raise ValueError(f"it lacks the Gaussians of {classes} classes that classifier_alignment needs")
        self.means, self.covariances = means.float(), covariances.float()


def align(
    head: nn.Linear | ProjectedHead, gaussians: ClassGaussians, settings: Settings, *stream: int | str
) -> list[float]:
    """Train the rows of the classes seen; return the mean loss of every epoch.

    The loss is cross entropy of `z / (TEMPERATURE |z|)` for logits z of the classes seen. Every epoch has new samples,
    drawn from the named stream, M to a batch.

    Args:
        head: Has weight (C_all, D) and bias (C_all,).
        gaussians: Of all classes seen.
        settings: See `Settings`.
        stream: Names the random draws.
    """
    rows, losses = gaussians.classes, []
    weight, bias = (nn.Parameter(tensor.detach()[:rows].clone()) for tensor in (head.weight, head.bias))
    optimizer = torch.optim.SGD([weight, bias], settings.lr, MOMENTUM, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    known = list(gaussians.factors())
    labels = torch.tensor([label for label, _, _ in known]).repeat_interleave(settings.samples)
    for epoch in range(settings.epochs):
        draws, total = generator(*stream, epoch), 0.0
        samples = torch.cat(
            [mean + torch.randn(settings.samples, len(mean), generator=draws) @ factor.T for _, mean, factor in known]
        )
        for batch in torch.randperm(len(labels), generator=draws).split(settings.samples):
            x, targets = samples[batch].to(weight), labels[batch].to(weight.device)
            logits = nn.functional.linear(x, weight, bias)
            scaled = logits / (TEMPERATURE * logits.norm(dim=1, keepdim=True).clamp(min=1e-7))
            loss = nn.functional.cross_entropy(scaled, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        schedule.step()
        losses.append(total / len(labels))
    with torch.no_grad():
        head.weight[:rows], head.bias[:rows] = weight, bias
    return losses
