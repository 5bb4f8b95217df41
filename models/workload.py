"""How many images a run sends through each kind of work, by the sizes of its tasks and the number of its expansions.

A cycle of a task is a func and an rd phase for one added adapter. A scan that adds an adapter goes on after its cycle;
if another layer could still ask, one more scan follows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.config.schema import Config
from utils.timescales.scales import subsets

Counts = Counter[str]  # images by kind of work

FUNC, RD, SCAN = "func step", "rd step", "scan"
ADDS, ALONE = ", one expansion", ", no expansion"  # end the name of a phase after the first task
VIEW, FEATURES, KEPT = ", view kept", ", features kept", ", means kept"  # end the name of one that reads what is kept
MAKE_VIEW, MAKE_FEATURES, MAKE_MEANS = "view", "features", "means"
EVALUATION, AGAIN, FORWARD = "evaluation", "evaluation, seen before", "forward"
OBSERVE, SCORE, STATISTICS = "readout, training image", "readout, test image", "class statistics"
ALIGN, DECODE, SAVE = "alignment, class", "decoding", "saved state"
SCORING = (EVALUATION, AGAIN, FORWARD, OBSERVE, SCORE)
LOADS = {  # which transform the images of a kind of work go through when they are loaded
    **dict.fromkeys(
        (FUNC, RD, SCAN, FUNC + ADDS, RD + ADDS, FUNC + ALONE, MAKE_VIEW, MAKE_FEATURES, MAKE_MEANS), "train"
    ),
    EVALUATION: "test",
}


@dataclass(frozen=True)
class Workload:
    """What a run is made of.

    Attributes:
        config: Its configuration.
        train: Images that each task trains on.
        test: Images that are scored after each task, whose accuracies the run reports.
        val: Validation images that are scored beside them.
        classes: Classes seen after each task.
        epochs: Epochs of a func and of an rd phase.
        expandable: Number of expandable layers.
        trains: Whether the first task, and later ones, have optimizer steps.
        settled: Whether activations of test images can be kept while the first task is trained, and from its end on.
        continual: Whether adapters learn in every task, in all layers or in some.
        consolidates: Whether adapters are consolidated.
        starts_anew: Whether every task begins with a new network.
        uses_features: Whether learning needs the features of the training images.
        branches: Of the adapters.
        room: Test images whose activations can be kept.
    """

    config: Config
    train: Sequence[int]
    test: Sequence[int]
    val: Sequence[int]
    classes: Sequence[int]
    epochs: Mapping[str, int]
    expandable: int
    trains: tuple[bool, bool]
    settled: tuple[bool, bool]
    continual: bool
    consolidates: bool
    starts_anew: bool
    uses_features: bool
    branches: tuple[str, ...]
    room: int

    def cycles(self, most: bool) -> list[int]:
        """Return the number of expansions of every task: none, or the most; the adapters of task 0 are not counted."""
        later = most and self.trains[1]
        return [self.expandable if later and task else 0 for task in range(len(self.train))]

    def passes(self, task: int, cycles: int) -> dict[str, int]:
        """Return the epochs of a task by kind of phase."""
        if not self.trains[task > 0]:
            return {"func": 0, "rd": 0}
        return {"func": self.epochs["func"] * max(1, cycles), "rd": self.epochs["rd"] * (cycles if task else 1)}

    def steps(self, task: int, cycles: int) -> dict[str, int]:
        """Return the optimizer steps of a task by kind of phase."""
        of_epoch = -(-self.train[task] // self.config.batch_size)
        return {name: epochs * of_epoch for name, epochs in self.passes(task, cycles).items()}

    def counts(self, cycles: Sequence[int]) -> list[Counts]:
        """Return the images of every task by kind of work, given the number of its expansions."""
        kept, off = (_Kept(self.config.eval_batch_size, room) for room in (self.room, sum(self.test)))
        counts = []
        for task, number in enumerate(cycles):
            if self.starts_anew:
                off = _Kept(self.config.eval_batch_size, sum(self.test))
            counts.append(self._training(task, number) + self._scoring(task, number, kept, off))
        return counts

    def _training(self, task: int, cycles: int) -> Counts:
        images, passes = self.train[task], self.passes(task, cycles)
        counts = Counter({DECODE: images, **({STATISTICS: images, EVALUATION: images} if self.uses_features else {})})
        every, scans = self.config.checkpoint_every, 0
        stages = 3 * max(1, cycles) + 1 if self.trains[task > 0] else 0
        counts[SAVE] = 1 + (stages + sum(passes.values()) // every if every else 0)
        if self.config.classifier_alignment and task:
            counts[ALIGN] = self.classes[task]
        if not self.trains[task > 0]:
            return counts
        views = self.config.views if task and self.settled[1] else 0
        ending, suffix = VIEW if views and self.expandable else "", (ADDS if cycles else ALONE) if task else ""
        if task and self.expandable:  # with the most expansions each of them is in a scan of its own
            scans = max(1, cycles + (0 < cycles < self.expandable))
            counts[SCAN + ending] += images * scans
        if task and self.expandable and self.continual:  # mean z before and after training
            counts[SCAN + ending] += 2 * images
        if self.consolidates and self.expandable and (cycles or not task):  # records are filled again
            counts[SCAN + ending] += images
        head_alone = not (cycles or self.continual)
        counts[FUNC + suffix + (FEATURES if views and head_alone else ending)] += passes["func"] * images
        if means := self.config.views or self.config.rd_views:
            phases = passes["rd"] // max(1, self.epochs["rd"])
            counts[MAKE_MEANS + ending] += phases * min(means, self.epochs["rd"]) * images
            counts[RD + KEPT] += passes["rd"] * images
        else:
            counts[RD + suffix] += passes["rd"] * images
        if views:
            used = max(self.epochs["func"], scans, self.epochs["rd"] if cycles else 0)
            counts[MAKE_VIEW] += bool(ending) * min(views, used) * images
            counts[MAKE_FEATURES + ending] += head_alone * min(views, self.epochs["func"]) * images
        return +counts

    def _scoring(self, task: int, cycles: int, kept: "_Kept", off: "_Kept") -> Counts:
        config, images, keeps = self.config, self.test[task], self.settled[1]
        sets = [name for name, active in subsets(self.branches).items() if active] if self._scores_branches else [""]
        whole, during = sets[0], keeps if task else self.settled[0]
        counts: Counts = Counter()
        trained = self.trains[task > 0] and (not task or bool(cycles) or self.continual)
        if config.eval_every and self.trains[task > 0]:
            for _ in range(max(1, cycles) * (self.epochs["func"] // config.eval_every)):
                counts += kept.score(whole, images, during)
        if self.consolidates and trained:
            for name in [*sets, whole]:  # before, and the whole network after
                counts += kept.score(name, images, during)
            if self._scores_branches:
                counts[EVALUATION] += off.score("", images, True)[EVALUATION]
        for name in sets:
            counts += kept.score(name, images, keeps)
        counts[EVALUATION] += off.score("", images, True)[
            EVALUATION
        ]  # of features that are kept the head alone answers
        if self.val[task]:
            counts += kept.score("val", self.val[task], keeps)
        if config.readouts:
            counts[EVALUATION] += self.train[task]
            counts[FORWARD] += (self.sides - 1) * self.train[task]
            counts[OBSERVE] += self.sides * self.train[task]
            counts[SCORE] += self.sides * images
        return +counts

    @property
    def _scores_branches(self) -> bool:
        return bool(self.branches) and self.config.branch_eval

    @property
    def sides(self) -> int:
        """Number of sets of features for the readouts: with all adapters, with none, and with each branch alone."""
        return 2 + (len(self.branches) if self._scores_branches else 0)


class _Kept:
    """How many test images are kept for later evaluations, by what acts on them: whole batches, up to a limit."""

    def __init__(self, batch_size: int, room: int) -> None:
        self.batch_size, self.left = batch_size, room // batch_size * batch_size
        self.kept: Counter[str] = Counter()

    def score(self, what: str, images: int, keeps: bool) -> Counts:
        """Count an evaluation, which may keep images."""
        again = self.kept[what] if keeps else 0
        if keeps:
            added = min(images // self.batch_size * self.batch_size - again, self.left)
            self.kept[what] += added
            self.left -= added
        return Counter({EVALUATION: images - again, AGAIN: again})
