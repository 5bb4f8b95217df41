"""How every command begins and ends, whatever its process gets from terminal, user, folder and parent.

The file of a command calls `start` before all imports that take long, and its `main` is a `command`:

    if __name__ == "__main__":
        from utils.console import start

        start()

    import ...

    @command
    def main(argv: Sequence[str] | None = None) -> int: ...

    if __name__ == "__main__":
        sys.exit(main())
"""

import codecs
import errno
import functools
import importlib.machinery
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TextIO

from utils.errors import UserError

P = ParamSpec("P")

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
OWN = ("main", "eval", "trainer", "models", "backbone", "utils", "tools", "benchmarks")
ASCII = {"±": "+/-", "−": "-", "–": "-", "→": "->", "…": "...", "×": "x"}


def start() -> None:
    """Prepare the process of a command.

    Modules come from where they are installed, even if the project's folder has a file or folder of that name. Standard
    streams that are closed lead to nowhere. Output is discarded when its reader has gone, and characters that the
    terminal lacks are replaced. Ctrl-C and SIGTERM end the process at once, even if it inherited that they are ignored;
    a command that has something to save or to tidy up sets other handlers. Users get a name and a home.
    """
    _search_own_folder_last()
    for number in range(3):
        _fill(number)
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _end_at_once)
    codecs.register_error("readable", _readable)
    sys.stdout, sys.stderr = (_stream(number, old) for number, old in ((1, sys.stdout), (2, sys.stderr)))
    sys.excepthook = _without_traceback
    import logging  # now that Ctrl-C ends the process quietly

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of caches that it cannot write or has to build
    complete_environment()


def command(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command answer errors by a message on standard error and an exit code.

    The code is 2 after a UserError, 1 after an OSError such as a full disk, and 130 after Ctrl-C.
    """

    @functools.wraps(main)
    def answering(*args: P.args, **kwargs: P.kwargs) -> int:
        sys.stdout, sys.stderr = sys.stdout or _Nowhere(), sys.stderr or _Nowhere()
        complete_environment()
        try:
            try:
                return main(*args, **kwargs)
            finally:
                _flush()
        except (UserError, OSError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    return answering


def _search_own_folder_last() -> None:
    last = {"", ROOT} if sys.flags.safe_path else {"", ROOT, sys.path[0]}
    sys.path.sort(key=last.__contains__)
    sys.path += [] if ROOT in sys.path else [ROOT]
    sys.meta_path.insert(0, _OwnModules)


class _OwnModules:
    """Finds the project's own modules in its folder, where installed packages have the same names."""

    @staticmethod
    def find_spec(name: str, path: object = None, _: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.PathFinder.find_spec(name, [ROOT]) if path is None and name in OWN else None


def _fill(number: int) -> None:
    """Open a closed standard stream; otherwise the next file would get its number, and the messages of libraries."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _end_at_once(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks by similar ones, or else by their numbers."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in ASCII:
        return ASCII[error.object[error.start]], error.start + 1
    return codecs.backslashreplace_errors(error)


class _Discarding(io.FileIO):
    """A standard stream that discards what nobody can read, as its pipe or terminal is closed."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EBADF) and not (error.errno == errno.EIO and self.terminal):
                raise
            return memoryview(data).nbytes

    @functools.cached_property
    def terminal(self) -> bool:
        """Whether it was a terminal when this was asked first."""
        return self.isatty()


def _stream(number: int, old: TextIO | None) -> io.TextIOWrapper:
    raw = _Discarding(number, "w", closefd=False)
    at_once = raw.terminal or number == 2 or getattr(old, "write_through", False)
    encoding = getattr(old, "encoding", "utf-8")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "readable", line_buffering=at_once)


class _Nowhere(io.TextIOBase):
    """Discards what is written."""

    def write(self, text: str, /) -> int:
        return len(text)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = _Nowhere()  # the interpreter would try it again at its end
        raise type(error)(error.errno, error.strerror, "standard output") from None


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error of an import; those of commands are handled by `command`."""
    if issubclass(kind, OSError):
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def complete_environment() -> None:
    """Give the user a name and a home for libraries that need them when they are imported."""
    import getpass
    import tempfile

    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container's user need not be known to the system
        os.environ["LOGNAME"] = f"user{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()
