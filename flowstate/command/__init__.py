"""The command line: ``flowstate run module:flow``."""

from flowstate.command.main import main

__all__ = ["main"]
