"""The configuration of a run: its keys, files and flags, and its hash."""

from utils.config.load import load as load
from utils.config.load import resolve as resolve
from utils.config.schema import Config as Config
