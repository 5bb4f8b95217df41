"""Readouts against plain numpy computations on the same features, and in a learner against timm's features."""

import numpy as np
import pytest
import timm
import torch
from conftest import SHAPE
from learners import CONTINUAL, NESTED, learn

from models import readouts
from models.readouts import (
    FITTED,
    KINDS,
    RIDGES,
    SHRINKAGE,
    Discriminant,
    NearestMean,
    RandomProjection,
    ReadoutSet,
    best_ridge,
    square,
    symmetric,
    triangle,
)
from utils.readouts import READOUTS
from utils.runs.checkpoint import CheckpointError
from utils.streams import generator

SIZES, WIDTH, SEED = (3, 2, 2), 8, 5
ENDS = np.cumsum(SIZES)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(readouts, "WIDTH", 30)


@pytest.fixture
def data():
    """Features (n, D) float32 and labels (n,) of each task: correlated, with unequal classes, out of order."""
    rng = np.random.RandomState(1)
    mixing, tasks, first = rng.randn(WIDTH, WIDTH), [], 0
    centres = 2 * rng.randn(sum(SIZES), WIDTH)
    for size in SIZES:
        labels = np.repeat(np.arange(first, first + size), rng.randint(6, 14, size))
        rng.shuffle(labels)
        features = (centres[labels] + 1 + rng.randn(len(labels), WIDTH) @ mixing).astype(np.float32)
        tasks.append((torch.from_numpy(features), torch.from_numpy(labels)))
        first += size
    return tasks


@pytest.fixture
def test_images():
    return torch.from_numpy(np.random.RandomState(2).randn(50, WIDTH).astype(np.float32) * 3)


def observed(name, data, until=3):
    readout = KINDS[name](SEED, WIDTH)
    for (features, labels), classes in list(zip(data, ENDS.tolist(), strict=True))[:until]:
        readout.observe(features, labels, classes)
    return readout


def whole(data):
    return (torch.cat(column).double().numpy() for column in zip(*data, strict=True))


def one_hot(labels, classes):
    return np.eye(classes)[labels.astype(int)]


def ridge_by_hand(h, targets, chosen, wanted):
    errors = []
    for ridge in 10.0 ** np.arange(-8, 9):
        weights = np.linalg.inv(h.T @ h + ridge * np.eye(h.shape[1])) @ h.T @ targets
        errors.append(((chosen @ weights - wanted) ** 2).mean())
    return 10.0 ** (int(np.argmin(errors)) - 8)


def test_every_name_has_a_class():
    assert tuple(KINDS) == READOUTS


def test_ncm_is_the_cosine_to_the_means_of_all_images_of_a_class(data, test_images):
    x, y = whole(data)
    expected = []
    for image in test_images.double().numpy():
        means = [x[y == label].mean(axis=0) for label in range(7)]
        expected.append([image @ mean / np.linalg.norm(image) / np.linalg.norm(mean) for mean in means])
    scores = observed("ncm", data).scores(test_images)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, expected, 1e-10)


def test_lda_is_the_gaussian_discriminant_of_one_shrunk_covariance(data, test_images):
    x, y = whole(data)
    means = np.array([x[y == label].mean(axis=0) for label in range(7)])
    scatter = sum(np.outer(row - means[int(label)], row - means[int(label)]) for row, label in zip(x, y, strict=True))
    within = scatter / (len(x) - 7)
    shrunk = 0.9 * within + 0.1 * np.trace(within) / WIDTH * np.eye(WIDTH)
    readout = observed("lda", data)
    np.testing.assert_allclose(readout.covariance, shrunk, 1e-9, 1e-9)
    inverse, images = np.linalg.inv(shrunk), test_images.double().numpy()
    # log densities up to what is equal for all classes
    expected = [[-(image - mean) @ inverse @ (image - mean) / 2 for mean in means] for image in images]
    expected += np.array([image @ inverse @ image / 2 for image in images])[:, None]
    np.testing.assert_allclose(readout.scores(test_images), expected, 1e-7, 1e-7)
    assert SHRINKAGE == 0.1


@pytest.mark.parametrize("until", [1, 3])
def test_ranpac_is_ridge_regression_on_all_images_with_the_ridge_of_the_last_task(data, test_images, until):
    readout, tasks = observed("ranpac", data, until), data[:until]
    x, y = whole(tasks)
    projection = torch.randn(WIDTH, 30, dtype=torch.float64, generator=generator(SEED, "ranpac")).numpy()
    h = np.maximum(x @ projection, 0)
    features, labels = (part.double().numpy() for part in tasks[-1])
    known, total = int(ENDS[until - 1]) - SIZES[until - 1], int(ENDS[until - 1])
    held = readout.held_out(tasks[-1][1], known).numpy()
    newest, targets = np.maximum(features @ projection, 0), one_hot(labels, total)[:, known:]
    ridge = ridge_by_hand(newest[~held], targets[~held], newest[held], targets[held])
    assert float(readout.ridge) == pytest.approx(ridge)
    weights = np.linalg.inv(h.T @ h + ridge * np.eye(30)) @ h.T @ one_hot(y, total)
    expected = np.maximum(test_images.double().numpy() @ projection, 0) @ weights
    np.testing.assert_allclose(readout.scores(test_images), expected, 1e-5, 1e-7)


def test_a_fifth_of_each_class_chooses_the_ridge_and_the_draw_is_the_tasks():
    labels = torch.tensor([3] * 10 + [4] * 5 + [5] + [6] * 2)
    readout = RandomProjection(SEED, WIDTH)
    held = readout.held_out(labels, 3)
    assert [int(held[labels == label].sum()) for label in (3, 4, 5, 6)] == [2, 1, 0, 1]
    assert torch.equal(held, RandomProjection(SEED, WIDTH).held_out(labels, 3))
    draws = {tuple(RandomProjection(*at).held_out(labels, known).tolist()) for *at, known in ((5, 8, 3), (6, 8, 3))}
    assert len(draws | {tuple(readout.held_out(labels, 4).tolist())}) == 3
    assert FITTED == 0.8


@pytest.mark.parametrize("images", [7, 60])  # fewer and more than the width
def test_the_ridge_is_that_of_the_least_error_on_other_images(images):
    rng, found = np.random.RandomState(images), set()
    for noise in (0.01, 1.0, 30.0):
        truth, h, chosen = rng.randn(12, 3), rng.randn(images, 12), rng.randn(40, 12)
        targets, wanted = (part @ truth + noise * rng.randn(len(part), 3) for part in (h, chosen))
        expected = ridge_by_hand(h, targets, chosen, wanted)
        assert best_ridge(*map(torch.from_numpy, (h, targets, chosen, wanted))) == pytest.approx(expected)
        found.add(expected)
    assert len(found) > 1
    assert pytest.approx((1e-8, 1e8)) == (RIDGES[0], RIDGES[-1])


@pytest.mark.parametrize("name", READOUTS)
def test_sums_do_not_depend_on_how_images_come_in(data, test_images, name):
    (features, labels), *_ = data
    together, parts = (KINDS[name](SEED, WIDTH) for _ in range(2))
    together.observe(features, labels, 3)
    for first in range(0, len(labels), 5):
        parts.observe(features[first : first + 5], labels[first : first + 5], 3)
    for key, value in together.state_dict().items():
        if key != "ridge":
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", READOUTS)
def test_from_a_stored_state_a_readout_goes_on_bit_by_bit(data, test_images, name):
    stored = observed(name, data, 2).state_dict()
    assert all(value.dtype == torch.float64 for value in stored.values())
    other = KINDS[name](SEED, WIDTH)
    other.load_state_dict(stored)
    other.observe(*data[2], 7)
    one = observed(name, data)
    assert torch.equal(other.scores(test_images), one.scores(test_images))
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in other.state_dict().items())


def test_the_size_of_a_state_is_that_of_the_documentation(data):
    sizes = {name: sum(value.numel() for value in observed(name, data).state_dict().values()) for name in READOUTS}
    c, d, m = 7, WIDTH, 30
    assert sizes == {"ncm": c * (d + 1), "lda": c * (d + 1) + d * (d + 1) // 2, "ranpac": m * (m + 1) // 2 + m * c + 1}


def test_a_class_without_images_is_never_chosen(data, test_images):
    features, labels = data[0]
    for name in READOUTS:
        readout = KINDS[name](SEED, WIDTH)
        readout.observe(features[labels != 2], labels[labels != 2], 3)
        assert readout.classes == 3
        scores = readout.scores(test_images)
        assert scores.shape == (50, 3)
        assert not scores.isnan().any()
        assert name == "ranpac" or not (scores.argmax(dim=1) == 2).any()


def test_a_linear_map_of_the_features_maps_the_sums_of_ncm_and_lda(data):
    """As needed where features drift."""
    matrix = torch.from_numpy(np.random.RandomState(4).randn(WIDTH, WIDTH))
    for kind in (NearestMean, Discriminant):
        plain, mapped = kind(SEED, WIDTH), kind(SEED, WIDTH)
        plain.observe(data[0][0].double(), data[0][1], 3)
        mapped.observe(data[0][0].double() @ matrix, data[0][1], 3)
        torch.testing.assert_close(plain.sums @ matrix, mapped.sums)
    torch.testing.assert_close(matrix.T @ plain.moment @ matrix, mapped.moment)


def test_a_triangle_holds_a_symmetric_matrix():
    full = symmetric(torch.rand(4, 4, dtype=torch.float64))
    assert torch.equal(full, full.T)
    assert len(triangle(full)) == 10
    assert torch.equal(square(triangle(full)), full)


# ---- of a run


def test_readouts_that_missed_a_task_are_dropped(data):
    held = ReadoutSet(["ncm", "lda"], SEED, WIDTH)
    held.observe({"": data[0][0], "slow": data[0][0]}, data[0][1], 0, 3)
    assert list(held.members) == ["lda", "ncm", "lda.slow", "ncm.slow"]
    held.observe({"": data[1][0]}, data[1][1], 3, 5)
    assert list(held.members) == ["lda", "ncm"]
    held.observe({"": data[2][0]}, data[2][1], 6, 8)
    assert held.members == {}


def test_a_set_takes_what_it_is_to_have_and_refuses_another_width(data, test_images):
    held = ReadoutSet(["ncm", "ranpac"], SEED, WIDTH)
    held.observe({"": data[0][0], "adapters_off": 2 * data[0][0] + 1}, data[0][1], 0, 3)
    stored, other = held.state_dict(), ReadoutSet(["ncm", "lda"], SEED, WIDTH)
    other.load_state_dict({**stored, "fc.weight": torch.ones(1)})
    assert list(other.members) == ["ncm", "ncm.adapters_off"]
    ours = other.predict({"adapters_off": test_images})
    assert list(ours) == ["ncm.adapters_off"]
    np.testing.assert_array_equal(
        ours["ncm.adapters_off"], held.predict({"adapters_off": test_images})["ncm.adapters_off"]
    )
    with pytest.raises(ValueError, match="its readout ncm is damaged or of another width"):
        ReadoutSet(["ncm"], SEED, WIDTH + 1).load_state_dict(stored)


SIDES = {"adaptmlp": ({"ffn_adapter_type": "adaptmlp"}, []), "nested": (NESTED, ["slow", "fast"])}


@pytest.mark.parametrize("kind", SIDES)
def test_a_learner_scores_features_of_timm_and_of_every_side(make, tasks, kind, tmp_path):
    keys, branches = SIDES[kind]
    learner, data = make(**keys, eval_batch_size=7, readouts=["ncm"]), tasks([3, 2, 1], test=5)
    learn(learner, data)  # the task's images are observed when they are asked for
    learner.incremental_train(data)
    learner.readouts.members.clear()
    assert learner.read_out(learner.report_task()) == {}

    learner = make(**keys, eval_batch_size=7, readouts=["ncm"])
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE).eval()
    vit.load_state_dict(learner.network.frozen_state())
    seen = {side: ([], []) for side in ("", "adapters_off", *branches)}
    for task in range(2):
        learner.incremental_train(data)
        learner.network.train()
        found = learner.read_out(learner.report_task())
        assert learner.network.training
        new = range(3) if task == 0 else range(3, 5)
        _, train, labels = data.get_dataset(new, "train", "test").tensors
        _, images, _ = data.get_dataset(range(new.stop), "test", "test").tensors
        assert set(found) == {f"ncm.{side}" if side else "ncm" for side in seen}
        for side, (features, classes) in seen.items():
            with torch.no_grad():
                if side == "adapters_off":
                    mine, asked = vit(train), vit(images)
                else:
                    active = (side,) if side else learner.network.adapter_type.branches
                    with learner.network.branches(active):
                        mine, asked = (learner.network.eval()(part)["features"] for part in (train, images))
            features.append(mine.numpy())
            classes.append(labels.numpy())
            x, y = np.concatenate(features), np.concatenate(classes)
            means = np.array([x[y == label].mean(axis=0) for label in range(new.stop)])
            cosine = asked.numpy() @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
            assert found[f"ncm.{side}" if side else "ncm"].tolist() == cosine.argmax(axis=1).tolist()
        learner.after_task()
    assert learner.read_out(learner.report_task()).keys() == found.keys()  # asked again, nothing is observed twice
    learner.save_checkpoint(tmp_path / "task.safetensors", {})
    other = make(**keys, eval_batch_size=7, readouts=["ncm"])
    other.load_checkpoint(tmp_path / "task.safetensors")
    other.begin_test(data)
    again = other.read_out(other.report_task())
    assert all(again[label].tolist() == found[label].tolist() for label in found)


@pytest.mark.parametrize("keys", [NESTED, CONTINUAL])
def test_readouts_change_nothing_else(make, tasks, keys):
    learners = [make(**keys, readouts=names) for names in ([], list(READOUTS))]
    states = []
    for learner in learners:
        data = tasks([2, 2])
        for _ in range(2):
            learner.incremental_train(data)
            report = learner.report_task()
            read = learner.read_out(report)
            learner.after_task()
        states.append((learner.network.state_dict(), report.predictions))
    assert (learners[0].readout_loader, len(read)) == (None, 12)
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name
    np.testing.assert_array_equal(states[0][1].confidence, states[1][1].confidence)


def test_a_checkpoint_with_readouts_of_another_width_is_refused(make, tasks, tmp_path):
    learner, data = make(readouts=["ncm"]), tasks([2, 2])
    learner.incremental_train(data)
    learner.read_out(learner.report_task())
    learner.readouts.members["ncm"].sums = torch.zeros(2, 5, dtype=torch.float64)
    learner.save_checkpoint(tmp_path / "task.safetensors", {})
    with pytest.raises(CheckpointError, match="its readout ncm is damaged"):
        make(readouts=["ncm"]).load_checkpoint(tmp_path / "task.safetensors")
    make(readouts=[]).load_checkpoint(tmp_path / "task.safetensors")
