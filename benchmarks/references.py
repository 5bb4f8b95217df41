"""What the frozen backbone alone can do: nearest class mean and a joint linear head on its class token.

Shapes: n images, D embedding width, C classes.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from models import Setup
from trainer import make_tasks
from utils.config.schema import Config
from utils.data.loader import Batch, StreamLoader
from utils.data.sources import load_dataset
from utils.devices import resolve_device
from utils.inc_net import SEMAVitNet

WEIGHT_DECAY = 1e-3  # of the linear head, on standardised features


def references(config: Config) -> dict[str, float]:
    """Test accuracy (per cent) over all classes of classifiers that see every class at once, and chance."""
    tasks = make_tasks(config, load_dataset(config.dataset, Path(config.data_root)))
    setup = Setup(config, config.seed[0], resolve_device(config.device), tasks.nb_classes)
    network, classes = setup.network().eval(), range(tasks.nb_classes)
    spec = network.input_spec(config.normalize)
    images = [tasks.get_dataset(classes, "train", "test", spec), tasks.get_dataset(classes, "test", "test", spec)]
    loaders = [StreamLoader(some, config.num_workers, setup.device, setup.seed) for some in images]
    passes = [loader.epoch("references", batch_size=config.eval_batch_size, shuffle=False) for loader in loaders]
    train, test = (features(network, batches) for batches in passes)
    return {
        "chance": 100 / tasks.nb_classes,
        "nearest class mean": accuracy(nearest_class_mean(*train, tasks.nb_classes, test[0]), test[1]),
        "joint linear head": accuracy(linear_head(*train, tasks.nb_classes, test[0]), test[1]),
    }


@torch.no_grad()
def features(network: SEMAVitNet, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Final-norm class tokens (n, D) and labels (n,); the untrained adapters are the zero map."""
    pairs = [(network(images)["features"], labels) for _, images, labels in batches]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def nearest_class_mean(x: Tensor, y: Tensor, classes: int, queries: Tensor) -> Tensor:
    """Predicted classes (n,) of queries (n, D): the class whose mean feature has the largest cosine."""
    means = torch.stack([x[y == label].mean(dim=0) for label in range(classes)])
    return (nn.functional.normalize(queries) @ nn.functional.normalize(means).T).argmax(dim=1)


def linear_head(x: Tensor, y: Tensor, classes: int, queries: Tensor) -> Tensor:
    """Predicted classes (n,) of queries (n, D) by multinomial logistic regression, fitted to convergence by L-BFGS."""
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-6
    head = nn.Linear(x.shape[1], classes, device=x.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(head((x - mean) / std), y) + WEIGHT_DECAY * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head((queries - mean) / std).argmax(dim=1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Per cent."""
    return 100 * float((predictions == labels).float().mean())
