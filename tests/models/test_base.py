"""What every learner has: checkpoints, and what it is made of."""

import pytest
import torch
from learners import CONSOLIDATED, STRANGE, assert_equal_states, learn, moved, values

from models import Hooks, Setup, get_model
from models.sema import Learner
from utils.runs.checkpoint import CheckpointError

# ---- checkpoints


@pytest.mark.parametrize("keys", [{}, {**CONSOLIDATED, "nested_lora_consolidation_mode": "function"}])
def test_a_saved_learner_comes_back_and_evaluates_the_same(make, tasks, script, tmp_path, keys):
    learner, data, path = make(**keys), tasks([2, 2, 2]), tmp_path / "task_1.safetensors"
    script({1: [STRANGE]})
    learner.incremental_train(data)
    learner.after_task()
    learner.incremental_train(data)
    learner.save_checkpoint(path, {"class_order": [1, 0], "config": {"a": 1}})
    accuracy, predictions = learner.eval_task()
    other = make(**keys)
    meta = other.load_checkpoint(str(path))
    assert (meta["class_order"], meta["config"], meta["task_sizes"]) == ([1, 0], {"a": 1}, [2, 2])
    assert (other.cur_task, other.known_classes, other.total_classes) == (1, 2, 4)
    assert_equal_states(learner, other)
    other.begin_test(data)
    again, same = other.eval_task()
    assert again == accuracy
    assert same.top1.tolist() == predictions.top1.tolist()


def test_a_checkpoint_on_other_backbone_weights_is_refused(make, tasks, tmp_path):
    learner = make(seed=1)
    learn(learner, tasks([2, 2, 2]))
    learner.save_checkpoint(tmp_path / "a.safetensors", {})
    other = make(seed=2)
    before = values(other.network)
    with pytest.raises(CheckpointError, match=learner.network.provenance["sha256"][:16]):
        other.load_checkpoint(tmp_path / "a.safetensors")
    assert moved(other.network, before) == set()
    assert other.cur_task == -1


# ---- what it is made of


def test_the_key_model_name_chooses_the_learner(config, events):
    hooks = Hooks(events)
    learner = get_model(Setup.of(config()), hooks)
    assert type(learner) is Learner
    assert learner.hooks is hooks
    with pytest.raises(ValueError, match="model_name 'lwf' is unknown; choose one of sema"):
        get_model(Setup.of(config(model_name="lwf")))


def test_a_learner_takes_a_network_that_it_is_given(config):
    setup = Setup.of(config())
    network = setup.network()
    learner = Learner(setup, network)
    assert learner.network is learner.evaluator.network is network


def test_a_setup_s_network_comes_from_its_seed(config):
    first, again, other = (Setup.of(config(seed=seed)).network().state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_missing_keys_take_their_defaults(config):
    given = {key: config()[key] for key in ("backbone_type", "backbone_kwargs", "pretrained", "nb_classes")}
    keys = {**given, "seed": 3, "device": [torch.device("cpu")], "adapt_start_layer": 1, "adapt_end_layer": 2}
    learner = Learner(keys)
    held = learner.config
    assert (held.ffn_adapter_type, held.buffer_size, held.init_lr) == ("adaptmlp", 500, 0.005)
    assert (learner.seed, learner.device, learner.nb_classes) == (3, torch.device("cpu"), 6)
    assert learner.network.slots[1].newest.functional.rank == 16
