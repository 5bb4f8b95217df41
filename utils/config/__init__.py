"""The configuration of a run: every key, how files and flags become one configuration, and what identifies it."""

from utils.config.load import load as load
from utils.config.load import resolve as resolve
from utils.config.schema import Config as Config
