"""The exceptions of this project. Errors that a user can correct are told apart from faults of the program."""

AFTER_DIVERGENCE = (
    "the last saved state is kept. Start again with lower learning rates, or continue with --auto_resume and --on_nan "
    "skip, which leaves out batches whose loss is not finite"
)


class UserError(Exception):
    """An error that the user can correct. The command line prints it without a traceback and exits with code 2."""


class ConfigError(UserError, ValueError):
    """The configuration is invalid. The message has one line for each problem."""


class DataError(UserError):
    """A data set or an image is missing, incomplete or unreadable."""


class RunError(UserError):
    """A run is missing, unfinished or damaged."""


class AuditError(RuntimeError):
    """The run did not do what its configuration says, so its results are invalid."""


class DivergenceError(RuntimeError):
    """A loss or a parameter is NaN or infinite."""


class StoppedError(Exception):
    """The process was asked to stop by `signal`, and the run's state was saved."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
