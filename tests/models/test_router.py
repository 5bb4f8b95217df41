"""Mean mixing weights, against softmax and means written out."""

import numpy as np
import pytest
import torch
from learners import LAYERS, STRANGE, learn

from models.reports import mean_weights, router_weights


@pytest.fixture
def learner(make, tasks, script):
    learner = make()
    script({1: [STRANGE]})
    learn(learner, tasks([2, 2, 2]), tasks=2)
    return learner


def test_the_weights_of_every_batch_are_the_softmax_of_the_router_on_the_token_means(learner, images):
    network = learner.network.eval()
    with router_weights(network.expandable) as seen, torch.no_grad():
        network(images)
        network(images[:2])
    assert seen.keys() == set(LAYERS)
    means = network.token_means(images, LAYERS)
    for layer, adapters in zip(LAYERS, (2, 1), strict=True):
        assert [tuple(weights.shape) for weights in seen[layer]] == [(5, adapters), (2, adapters)]
        router = network.slots[layer].router
        logits = means[layer].numpy() @ router.weight.detach().numpy().T + router.bias.detach().numpy()
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(seen[layer][0].numpy(), expected, rtol=1e-4)
        np.testing.assert_allclose(seen[layer][1].numpy(), expected[:2], rtol=1e-4)


def test_nothing_is_kept_afterwards_even_if_the_pass_fails(learner, images):
    network = learner.network.eval()
    with pytest.raises(RuntimeError, match="stop"), router_weights(network.expandable) as seen:
        raise RuntimeError("stop")
    network(images)
    assert seen == {1: [], 2: []}


def test_means_are_by_layer_task_and_adapter():
    rng = np.random.RandomState(0)
    labels, task_sizes = np.array([0, 1, 2, 3, 4, 2, 1]), [2, 1, 2]
    weights = {layer: rng.rand(7, adapters).astype(np.float32) for layer, adapters in ((1, 3), (2, 1))}
    seen = {layer: [torch.from_numpy(values[:4]), torch.from_numpy(values[4:])] for layer, values in weights.items()}
    found = mean_weights(seen, labels, task_sizes)
    members = [[0, 1, 6], [2, 5], [3, 4]]  # images of each task
    assert found.keys() == {"1", "2"}
    for layer, values in weights.items():
        expected = [[sum(values[i, a] for i in some) / len(some) for a in range(values.shape[1])] for some in members]
        np.testing.assert_allclose(found[str(layer)], expected, rtol=1e-6)


def test_a_task_without_test_images_is_left_out():
    seen = {1: [torch.tensor([[0.25, 0.75], [0.5, 0.5]])]}
    assert mean_weights(seen, [0, 3], [2, 1, 1]) == {"1": [[0.25, 0.75], [0.5, 0.5]]}
