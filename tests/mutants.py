"""Change the product's code in one place at a time, and see whether a test fails.

    PYTHONPATH=. python tests/mutants.py [--number 100] [--seed 0] [--only ID ...] [--document docs/reliability.md]

The changes (mutants) are drawn by seed from all that the operators below allow. Each is tried in a copy of the project,
by the tests that ran the changed function before, the mirrored test file first. Outcomes go to a JSON record at once;
a later run goes on from it, and tries again what survived. What cannot change a result is explained in a second file.
"""

import argparse
import ast
import contextlib
import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tools.generated import markdown_table, replace_part
from utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PATHS = ["backbone", "models", "utils", "trainer.py", "eval.py"]
TESTS = ["tests/backbone", "tests/models", "tests/utils", "tests/test_trainer.py", "tests/test_evidence.py"]
TESTS += ["tests/test_parity.py", "tests/test_resume.py", "tests/test_cli.py"]
PRELOADED = ["torch", "torchvision", "timm", "numpy", "scipy.stats", "pydantic", "tyro", "easydict"]
RECORD, EXPLAINED, OUTPUT = "tests/mutants.json", "tests/mutants_explained.json", "output.txt"
FORK = multiprocessing.get_context("fork")
HIDDEN = shutil.ignore_patterns(".*", "__pycache__")
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "zeros": "ones", "mean": "sum", "sum": "mean"}
TEXTS = (ast.JoinedStr, ast.List, ast.Tuple)  # and other sequences, which know no subtraction
SILENT = {"logger", "progress", "tqdm", "warnings"}  # calls that only tell people something


@dataclass(frozen=True)
class Mutant:
    """A change: the bytes `start` to `end` of `file`, in `function`, become `new`.

    `id` is stable while the function is: file, function, operator, number among the operator's places in it.
    """

    id: str
    file: str
    function: str
    start: int
    end: int
    old: str
    new: str


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield the operator, the part to be replaced and its replacement, for every change of one node."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            yield "comparison", node, ast.Compare(left, [SWAPS[type(op)]()], right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPS:
            if not any(isinstance(part, TEXTS) or isinstance(getattr(part, "value", 0), str) for part in (left, right)):
                yield "arithmetic", node, ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.BoolOp(op=op, values=values):
            yield "and, or", node, ast.BoolOp(SWAPS[type(op)](), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", node, operand
        case ast.Constant(value=bool(value)):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", node, ast.Constant(value + 1)
        case ast.Call(func=func, args=args, keywords=keywords):
            for dropped in keywords:
                yield "argument", node, ast.Call(func, args, [kept for kept in keywords if kept is not dropped])
        case ast.Name(id=name) if name in NAMES:
            yield "function", node, ast.Name(NAMES[name])
        case ast.Attribute(value=value, attr=name) if name in NAMES:
            yield "function", node, ast.Attribute(value, NAMES[name])
        case ast.Slice(lower=lower, upper=upper, step=step):
            if lower:
                yield "slice", node, ast.Slice(None, upper, step)
            if upper:
                yield "slice", node, ast.Slice(lower, None, step)
        case ast.AugAssign(target=target, op=op, value=value):
            yield "statement", node, ast.Pass()
            if type(op) in SWAPS:
                yield "arithmetic", node, ast.AugAssign(target, SWAPS[type(op)](), value)
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield "statement", node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement", node, ast.Pass()
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield "condition", node.test, ast.UnaryOp(ast.Not(), node.test)


def places(node: ast.AST, function: str = "", inside: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Yield the nodes of working code with their outermost functions: no annotations, texts, logs and asserts."""
    if isinstance(node, ast.JoinedStr | ast.Assert) or silent(node.value if isinstance(node, ast.Expr) else node):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not inside:
        function = f"{function}.{node.name}".removeprefix(".")
        inside = isinstance(node, ast.FunctionDef)
    yield function, node
    fields = [] if isinstance(node, ast.Raise) else ast.iter_fields(node)
    for value in [value for name, value in fields if name not in ("annotation", "returns", "decorator_list", "bases")]:
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from places(child, function, inside)


def silent(node: ast.AST) -> bool:
    """Whether a node is a call that only tells people something."""
    called = node
    while isinstance(called, ast.Call | ast.Attribute):
        called = called.func if isinstance(called, ast.Call) else called.value
    return isinstance(node, ast.Call) and isinstance(called, ast.Name) and called.id in SILENT


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    source = (root / file).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    numbers: Counter[str] = Counter()
    for function, node in places(ast.parse(source)):
        for operator, old, new in variants(node):
            name = f"{file}:{function}:{operator}"
            numbers[name] += 1
            start = lines[old.lineno - 1] + old.col_offset  # type: ignore[attr-defined]
            end = lines[old.end_lineno - 1] + old.end_col_offset  # type: ignore[attr-defined]
            written = ast.unparse(ast.fix_missing_locations(new))
            written = f"({written})" if isinstance(new, ast.expr) and not isinstance(new, ast.Slice) else written
            yield Mutant(f"{name}:{numbers[name]}", file, function, start, end, source[start:end].decode(), written)


class Watch:
    """A pytest plugin that runs the chosen tests, and notes how long they took, what they called, and which failed.

    Args:
        root: Of the project.
        chosen: The tests to be run, in this order; None: all, and the functions that they call are noted.
    """

    def __init__(self, root: Path, chosen: list[str] | None) -> None:
        self.root, self.chosen = f"{root}/", chosen
        self.seconds: Counter[str] = Counter()
        self.called: dict[str, set[str]] = {}  # by test, or by file for fixtures, which may be made once for its tests
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.chosen is not None:
            by_name = {item.nodeid: item for item in items}
            items[:] = [by_name[test] for test in self.chosen if test in by_name]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        with self._traced(file_of(item.nodeid)):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._traced(item.nodeid):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        self.failed += [report.nodeid] * report.failed

    @contextlib.contextmanager
    def _traced(self, whose: str) -> Iterator[None]:
        seen: set[tuple[str, str]] = set()

        def note(frame: FrameType, event: str, argument: Any) -> None:
            seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))

        if self.chosen is None:
            threading.settrace(note)
            sys.settrace(note)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            ours = ((file.removeprefix(self.root), name) for file, name in seen if file.startswith(self.root))
            self.called.setdefault(whose, set()).update(f"{f}:{name.partition('.<locals>')[0]}" for f, name in ours)


def file_of(test: str) -> str:
    return test.partition("::")[0]


@dataclass
class Outcome:
    """What came of a run of tests: pytest's exit code, "timeout" or "crash", and what `Watch` noted."""

    code: int | str
    failed: list[str] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    called: dict[str, set[str]] = field(default_factory=dict)

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Return the passed tests of the file that mirrors a mutant's, and those that called its function; or all.

        File after file: first the one that mirrors the mutant's, then the quickest.
        """
        name = f"{mutant.file}:{mutant.function}"
        mirror = f"tests/{Path(mutant.file).parent / f'test_{Path(mutant.file).name}'}"
        passed = [test for test in self.seconds if test in self.called and test not in self.failed]
        calling = [test for test in passed if name in self.called[test] | self.called[file_of(test)]]
        found = [test for test in passed if test in {*calling} or file_of(test) == mirror] if calling else passed
        seconds: Counter[str] = Counter()
        for test in found:
            seconds[file_of(test)] += self.seconds[test]

        def place(test: str) -> tuple[bool, float, str]:
            return file_of(test) != mirror, seconds[file_of(test)], file_of(test)

        return sorted(found, key=place)


def run_tests(root: Path, options: list[str], chosen: list[str] | None = None, limit: float | None = None) -> Outcome:
    """Run tests of the project in `root` in a forked process: to import torch takes longer than most trials."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_tests, args=(root, options, chosen, sender))
    child.start()
    sender.close()
    try:
        return Outcome(*receiver.recv()) if receiver.poll(limit) else Outcome("timeout")
    except EOFError:
        return Outcome("crash")
    finally:
        child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()


def _tests(root: Path, options: list[str], chosen: list[str] | None, sender: Any) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the process that asked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(root.parent / OUTPUT, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for file in (0, 1, 2):
        os.dup2(output, file)
    os.chdir(root)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a changed file of equal size and time would pass for its old self
    sys.dont_write_bytecode = True
    os.environ.pop("PYTHONPATH", None)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests")]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "utils")]:
        del sys.modules[name]  # those of the copy are wanted
    watch = Watch(root, chosen)
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is preloaded
    code = pytest.main([*quiet, "--hypothesis-seed=0", *options], [watch])
    sender.send((int(code), watch.failed, watch.seconds, watch.called))


def copied(root: Path, copy: Path) -> Path:
    """Copy a project without hidden files, runs and data sets."""
    large = {root / "logs", root / "data"}
    shutil.copytree(root, copy, ignore=lambda folder, names: (
        {name for name in names if Path(folder, name) in large} | HIDDEN(folder, names)))  # fmt: skip
    return copy


def try_mutant(copy: Path, mutant: Mutant, baseline: Outcome, patience: float) -> dict[str, Any]:
    """Return the record of a mutant: its outcome, "killed", "timeout" or "survived", and the test that failed."""
    chosen = baseline.tests_for(mutant)
    limit = patience + 10 * sum(baseline.seconds[test] for test in chosen)
    path = copy / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    try:
        seen = run_tests(copy, ["-x", *dict.fromkeys(map(file_of, chosen))], chosen, limit)
    finally:
        path.write_bytes(source)
    outcome = {0: "survived", "timeout": "timeout"}.get(seen.code, "killed")
    return {**described(mutant), "outcome": outcome, "by": (seen.failed or [None])[0]}


def described(mutant: Mutant) -> dict[str, Any]:
    return {key: getattr(mutant, key) for key in ("id", "file", "function", "old", "new")}


def draw(mutants: Iterable[Mutant], seed: int, number: int) -> list[Mutant]:
    """Return so many mutants, of every operator equally many while there are some.

    A mutant's place in the draw depends on its own id, so that a change of the code changes few of them.
    """
    by_operator: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.id}".encode()).digest()):
        by_operator.setdefault(mutant.id.split(":")[2], []).append(mutant)
    rounds = zip_longest(*by_operator.values())
    return [mutant for drawn in rounds for mutant in drawn if mutant][:number]


def report(record: dict[str, Any], explained: dict[str, str]) -> str:
    """Return the Markdown of a record: outcomes by folder, and the survivors with their explanations."""
    alive = [entry for entry in record["mutants"] if entry["outcome"] == "survived"]
    counts: dict[str, Counter[str]] = {}
    for entry in record["mutants"]:
        outcome = "explained" if entry in alive and entry["id"] in explained else entry["outcome"]
        for row in (entry["file"].rpartition("/")[0] or entry["file"], "all"):
            counts.setdefault(row, Counter())[outcome] += 1
    columns = ["killed", "timeout", "explained", "survived"]
    folders = sorted(counts, key=lambda row: (row == "all", row))
    table = [[row, str(counts[row].total()), *(str(counts[row][column]) for column in columns)] for row in folders]
    header = ["in", "tried", "a test failed", "a test never ended", "explained below", "no test failed"]
    rows = [
        [f"{e['file']}, {e['function']}", f"`{e['old']}`", f"`{e['new']}`", explained.get(e["id"], "")] for e in alive
    ]
    survivors = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        [
            f"Seed {record['seed']}, drawn from {record['possible']:,} possible changes:\n",
            markdown_table(header, table),
            markdown_table(["place", "code", "changed to", "why it survived"], survivors),
        ]
    )


def trials(root: Path, mutants: list[Mutant], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what comes of each mutant in a copy of the project."""
    for name in given.preload:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = copied(root, Path(folder).resolve() / "copy")
        baseline = run_tests(copy, given.tests)
        print(f"{len(mutants)} to try; without a change pytest ends with {baseline.code}, failed: {baseline.failed}")
        if not baseline.seconds:
            sys.exit((copy.parent / OUTPUT).read_text(encoding="utf-8")[-3000:])
        for mutant in mutants:
            yield try_mutant(copy, mutant, baseline, given.patience)


def go_on(given: argparse.Namespace) -> int:
    """Try what the record lacks and what survived without an explanation; 1 if something is left that did."""
    root = given.root.resolve()
    files = [file for name in given.paths for file in (sorted((root / name).rglob("*.py")) or [root / name])]
    possible = {m.id: m for file in files for m in mutants_of(root, file.relative_to(root).as_posix())}
    record, explained = read(root / RECORD, {"mutants": []}), read(root / EXPLAINED, {})
    known = {
        e["id"]: e
        for e in record["mutants"]
        if e["id"] in possible and e.items() >= described(possible[e["id"]]).items()
    }
    settled = [name for name, e in known.items() if e["outcome"] != "survived" or name in explained]
    drawn = [m for m in draw(possible.values(), given.seed, given.number) if m.id not in settled]
    wanted = [possible[name] for name in given.only] if given.only else drawn
    for entry in trials(root, wanted, given) if wanted else ():
        known[entry["id"]] = entry
        record = {"seed": given.seed, "possible": len(possible), "mutants": [known[name] for name in sorted(known)]}
        write_json(root / RECORD, record)
        print(f"{entry['outcome']:8}  {entry['id']}  by {entry['by']}", flush=True)
    text = report(record, explained)
    if given.document:
        replace_part(given.document, "mutants", text)
    print(text)
    return int(any(e["outcome"] == "survived" and e["id"] not in explained for e in record["mutants"]))


def read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def main() -> int:
    """Try mutants, and say which were not noticed; 1 if one is not explained."""
    parser = argparse.ArgumentParser(prog="python tests/mutants.py", description=__doc__)
    parser.add_argument("paths", nargs="*", default=PATHS, help="files and folders to change (default: %(default)s)")
    parser.add_argument("--number", type=int, default=100, help="mutants to draw; 0 tries none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ID", help="try these mutants of the record, or of all, again")
    parser.add_argument(
        "--tests", type=shlex.split, default=[*TESTS, "-m", "not slow"], help="pytest's arguments, quoted"
    )
    parser.add_argument("--patience", type=float, default=60, help="seconds on top of ten times what the tests took")
    parser.add_argument("--preload", nargs="*", default=PRELOADED, help="modules to import once for all trials")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    parser.add_argument("--document", type=Path, help="takes the tables")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell script it is ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return go_on(given)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
