"""How many images a whole run sends through each phase; times a phase's cost of an image that is what the run costs.

The run is shaped like exps/sema_cifar.json. A task with an expansion is scanned twice: the scan that finds the layer
goes on to its end after the new adapter is trained, and one more must find nothing. A task without is scanned once.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from models.workload import FEATURES, KEPT, VIEW
from utils.memory import GIB

Counts = Counter[str]  # images by phase


@dataclass(frozen=True)
class Run:
    """The shape of a run.

    Attributes:
        expands: For each task after the first, whether one layer gets an adapter.
        train_images: Of a task.
        test_images: Of a task's classes.
        func_epochs: Of each func phase.
        rd_epochs: Of each rd phase.
    """

    # In this order what the plain method scores is just as much as on average over all orders.
    expands: tuple[bool, ...] = (True, False, True) * 3
    train_images: int = 5000
    test_images: int = 1000
    func_epochs: int = 5
    rd_epochs: int = 20

    @property
    def tasks(self) -> range:
        """All of them."""
        return range(1 + len(self.expands))

    def adds(self, task: int) -> bool:
        """Whether adapters are added, which in task 0 are the first ones."""
        return task == 0 or self.expands[task - 1]

    def epochs(self, task: int) -> int:
        """Of all phases of a task together."""
        return self.func_epochs + self.adds(task) * self.rd_epochs

    def in_order(self, expanding_first: bool) -> "Run":
        """The same tasks after task 0 in one of the two extreme orders."""
        return replace(self, expands=tuple(sorted(self.expands, reverse=expanding_first)))


def plain_counts(run: Run) -> Counts:
    """Of the reference: the whole seen test set after every epoch and at each task's end."""
    scored = sum((1 + run.epochs(task)) * run.test_images * (1 + task) for task in run.tasks)
    return training(run) + Counter({"evaluation": scored})


def our_counts(run: Run, kept: int, batch: int, views: int = 0) -> Counts:
    """Of the learner: all seen test images at each task's end, those half way through the network where it kept them.

    Args:
        run: Its shape.
        kept: The most test images there is room for, `room_for`.
        batch: Test images in a batch; whole ones are kept.
        views: The key `views`.
    """
    scored = sum(run.test_images * (1 + task) for task in run.tasks)
    again = sum(min(run.test_images * task // batch * batch, kept) for task in run.tasks)
    return training(run, views) + Counter({"evaluation": scored - again, "evaluation, seen before": again})


def measured_beside(run: Run) -> Counts:
    """Of what a run measures by default beside SEMA's schedule: readouts with adapters and without, adapters off.

    Every training image goes through the network twice more, and every test image once.
    """
    return Counter({"evaluation": len(run.tasks) * (2 * run.train_images + run.test_images)})


def room_for(limit_gib: float, image_bytes: int, batch: int) -> int:
    """Test images that fit into a cache of whole batches."""
    return int(limit_gib * GIB) // (batch * image_bytes) * batch


def training(run: Run, views: int = 0) -> Counts:
    """Images of all scans and steps."""
    return sum((_of_task(run, task, views) for task in run.tasks), Counter())


def _of_task(run: Run, task: int, views: int) -> Counts:
    func = run.func_epochs * run.train_images
    if task == 0:
        return Counter({"func step": func}) + _rd(run, "rd step", views)
    adds, ending = run.adds(task), VIEW if views else ""
    scans = Counter({f"scan{ending}": (1 + adds) * run.train_images})
    made = Counter({"view": min(views, max(run.func_epochs, adds * run.rd_epochs)) * run.train_images})
    if adds:
        steps = Counter({f"func step, one expansion{ending}": func})
        return made + scans + steps + _rd(run, "rd step, one expansion", views, ending)
    if not views:
        return scans + Counter({"func step, no expansion": func})
    read = Counter({"features": min(views, run.func_epochs) * run.train_images})
    return made + scans + read + Counter({f"func step, no expansion{FEATURES}": func})


def _rd(run: Run, phase: str, views: int, ending: str = "") -> Counts:
    computed = min(views, run.rd_epochs) if views else run.rd_epochs
    kept = run.rd_epochs - computed
    return Counter({f"{phase}{ending}": computed * run.train_images, f"{phase}{KEPT}": kept * run.train_images})


def total(counts: Counts, of_an_image: Mapping[str, float]) -> float:
    """What the counted images cost, by what one costs in each phase."""
    return sum(images * of_an_image[phase] for phase, images in counts.items() if images)
