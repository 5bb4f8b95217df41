"""A tiny real ViT, its configuration, and tasks of a few images: what the tests of backbone, utils and models share."""

import os
import sys

from utils.console import complete_environment

if "torch" not in sys.modules:  # which asks for the user's name when it is imported
    complete_environment()

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import pytest
import timm
import torch
from easydict import EasyDict
from reliability import Account, spread_table
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from backbone.sema_block import SEMAModules
from utils.config.schema import defaults
from utils.runs.events import Event
from utils.stopping import SIGNALS

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
TINY = {
    "dataset": "npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": SHAPE,
    "adapt_start_layer": 1,
    "adapt_end_layer": 2,
    "ffn_num": 4,
    "nested_lora_rank": 3,
    "rd_dim": 5,
    "buffer_size": 20,
    "seed": 0,
    "device": [torch.device("cpu")],
    "num_workers": 0,
    "nb_classes": 6,
}


ACCOUNT = pytest.StashKey[Account]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="document that takes what fault tests observed")


def pytest_configure(config: pytest.Config) -> None:
    leftovers.watch()
    # In the background of a shell script SIGINT is ignored, under nohup SIGHUP: processes that tests start inherit it.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    os.environ["SEMA_CACHE"] = os.devnull  # a folder that cannot be written: every test reads its own images
    os.fsync = lambda descriptor: None  # it can matter only to a test that cuts the power, and takes most of a save
    config.stash[ACCOUNT] = Account()
    config.pluginmanager.register(config.stash[ACCOUNT])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fault = getattr(getattr(item, "function", None), "fault", None)
    if fault and (report.when == "call" or report.failed):
        sentence = item.originalname.removeprefix("test_").replace("_", " ")
        observed = {"seen": sentence, **dict(item.user_properties).get("observed", {})}
        report.user_properties.append(("fault", (fault.what, fault.how, observed)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    account, document = config.stash[ACCOUNT], config.option.reliability
    if account.spread:
        terminalreporter.section("what killed runs were at")
        terminalreporter.write(spread_table(account.spread))
    if document:
        try:
            account.write(document)
        except ValueError as error:
            terminalreporter.write_line(str(error), red=True)


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Callable[..., None]:
    """For a fault test to say how often it injected its fault and what came of it; see `Account.note`."""
    return lambda **observed: request.node.user_properties.append(("observed", observed))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """For tests that ask this process to stop, after which it would wait for a second request."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def config() -> Callable[..., EasyDict]:
    """A complete configuration of a tiny run; the keys given beat the tiny ones."""
    return lambda **keys: EasyDict({**defaults(), **TINY, **keys})


@pytest.fixture
def images() -> Tensor:  # (B, 3, S, S)
    return torch.rand(5, 3, 32, 32)


@pytest.fixture
def real_h() -> Tensor:  # (B, N, D), float64
    """What the second block of timm's own tiny ViT feeds into norm2: the input a slot there gets."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SHAPE).double().eval()
    seen: list[Tensor] = []
    vit.blocks[1].norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        vit(torch.rand(5, 3, 32, 32, dtype=torch.float64))
    return seen[0]


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter of a module normal values, so that nothing is zero by birth."""

    @torch.no_grad()
    def fill(module: nn.Module, scale: float = 0.5) -> nn.Module:
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
        return module

    return fill


@pytest.fixture
def make_slot(
    config: Callable[..., EasyDict], randomize: Callable[[nn.Module], nn.Module]
) -> Callable[..., SEMAModules]:
    """A slot in float64 with random values and some adapters; only the newest still learns.

    Layer 1 is one of those the tiny configuration expands, layer 0 is not.
    """

    def make(adapters: int = 1, layer: int = 1, **keys: object) -> SEMAModules:
        slot = SEMAModules(config(d_model=SHAPE["embed_dim"], **keys), layer).double()
        randomize(slot)
        for _ in range(adapters - 1):
            slot.end_of_cycle()
            slot.expand()
            randomize(slot.newest)
        return slot

    return make


class TinyTasks:
    """Stands in for the DataManager: images of a class are its pattern plus noise; `shifts` moves a task's images.

    Args:
        sizes: Classes of each task.
        train: Training images of each class.
        test: Test images of each class.
        shifts: For each task the height of a horizontal ramp that makes its images strange.
    """

    def __init__(self, sizes: Sequence[int], train: int = 6, test: int = 4, shifts: Sequence[float] = ()) -> None:
        self.sizes = list(sizes)
        rng, side = np.random.RandomState(3), SHAPE["img_size"]
        self.images: dict[tuple[str, int], np.ndarray] = {}
        for task, size in enumerate(sizes):
            ramp = (shifts[task] if task < len(shifts) else 0.0) * np.linspace(-1, 1, side)
            for label in range(sum(sizes[:task]), sum(sizes[:task]) + size):
                pattern = rng.randn(3, side, side)
                for split, count in (("train", train), ("test", test)):
                    self.images[split, label] = pattern + 0.7 * rng.randn(count, 3, side, side) + ramp

    def get_task_size(self, task: int) -> int:
        return self.sizes[task]

    def get_dataset(self, indices: Iterable[int], source: str, mode: str, **_: object) -> Dataset:
        labels = list(indices)
        x = np.concatenate([self.images[source, label] for label in labels]).astype(np.float32)
        y = np.concatenate([np.full(len(self.images[source, label]), label) for label in labels])
        return TensorDataset(torch.arange(len(y)), torch.from_numpy(x), torch.from_numpy(y))


@pytest.fixture
def tasks() -> type[TinyTasks]:
    return TinyTasks


class Events(list[tuple[str, dict[str, Any]]]):
    """Keeps what a learner reports."""

    def __call__(self, event: Event) -> None:
        fields = event.to_json()
        self.append((fields.pop("kind"), fields))

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        return (fields for name, fields in self if name == kind)


@pytest.fixture
def events() -> Events:
    return Events()
