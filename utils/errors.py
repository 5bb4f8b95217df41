"""What goes wrong by the user's hand, as against what goes wrong by ours."""


class UserError(Exception):
    """Something the user can put right: the command line prints the message without a traceback, and exits with 2."""


class ConfigError(UserError, ValueError):
    """The configuration is wrong. One line for each problem: key, value, where it came from, what was expected."""


class DataError(UserError):
    """A data set or an image is not there, not complete or not readable."""


class RunError(UserError):
    """A run that is not there, not finished or damaged; the message names the file."""


class AuditError(RuntimeError):
    """The run did not do what its configuration says: an error of ours, which makes its numbers worthless."""


class DivergenceError(RuntimeError):
    """A loss or a parameter is no finite number any more: further training would be worthless."""


class StoppedError(Exception):
    """The process was asked to stop, and the run's state was saved.

    Args:
        signal: Its number.
        message: Where the run stands and how it goes on.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
