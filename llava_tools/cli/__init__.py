"""The command line: one thin module a group of commands, and nothing heavy until one runs."""

from llava_tools.cli.entry import main

__all__ = ["main"]
