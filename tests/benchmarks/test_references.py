"""What classifiers on the frozen class token reach, against timm's own network and classes that are easy to tell."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from test_trainer import configuration, images  # noqa: F401
from torch import Tensor

from benchmarks.references import accuracy, features, linear_head, nearest_class_mean, references
from models import Setup


def test_references_of_a_run(images: Path, tmp_path: Path) -> None:  # noqa: F811
    found = references(configuration(images, tmp_path))
    assert found["chance"] == pytest.approx(100 / 6)
    assert found["chance"] < min(found["nearest class mean"], found["joint linear head"])


def test_features_are_timms_class_tokens(config: Callable[..., dict]) -> None:
    setup = Setup.of(config())
    network = setup.network().eval()
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **setup.config.backbone_kwargs).eval()
    vit.load_state_dict(network.backbone.state_dict(), strict=False)
    labels, pictures = torch.arange(5), torch.rand(5, 3, 32, 32)
    batches = [(labels[:3], pictures[:3], labels[:3]), (labels[3:], pictures[3:], labels[3:])]
    x, y = features(network, batches)
    torch.testing.assert_close(x, vit(pictures))
    assert torch.equal(y, labels)


@pytest.mark.parametrize("classify", [nearest_class_mean, linear_head])
def test_classes_in_directions_of_their_own_are_told_apart(classify: Callable[..., Tensor]) -> None:
    y = torch.arange(3).repeat(20)
    directions = torch.eye(3, 8)
    x, queries = (10 * directions[y] + 0.1 * torch.randn(60, 8) for _ in range(2))
    assert accuracy(classify(x, y, 3, queries), y) == 100
    assert accuracy(classify(x, y, 3, queries), (y + 1) % 3) == 0


def test_the_nearest_mean_is_that_of_the_largest_cosine() -> None:
    x, y = torch.tensor([[4.0, 0.0], [2.0, 0.0], [0.0, 0.2], [0.2, 0.2]]), torch.tensor([0, 0, 1, 1])
    # The means are (3, 0) and (0.1, 0.2): the query is closer to the second by distance, to the first by angle.
    assert nearest_class_mean(x, y, 2, torch.tensor([[0.3, 0.1]])).tolist() == [0]
