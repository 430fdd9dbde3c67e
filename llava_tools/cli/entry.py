"""`main`: run one command line and turn whatever happens into two lines and an exit code.

0 done, 2 the input is wrong, 1 a bug, 130 Ctrl-C. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from llava_tools.errors import UserError, nearest

NAME = "llava-tools"
# What a user can mend although it comes out of the operating system.
SYSTEM_ERRORS = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "The quota is used up: free some space, or write to another disk.",
    errno.EACCES: "Check the permissions of this file and its folder.",
    errno.EROFS: "This disk is read-only: write somewhere else.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
# The same, where the error names the path; without one it is a fault of ours.
PATH_ERRORS = {
    errno.ENOENT: "Check this path; its folder may not be there.",
    errno.ENOTDIR: "A part of this path is a file: choose another one.",
    errno.EISDIR: "This is a folder: name a file.",
    errno.EEXIST: "This is a file already: choose another name.",
    errno.ELOOP: "The links in this path lead in a circle: mend them.",
}


# Device files without which there is no GPU that torch calls CUDA (NVIDIA, Jetson, AMD, WSL).
GPUS = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    atexit.register(_hide_what_triton_leaks)  # the first to be registered runs last
    tell_deepspeed_of_no_gpu()
    code = run(sys.argv[1:])
    gc.freeze()  # looking for cycles among what torch imported takes Python half a second at exit
    sys.exit(code)


def _hide_what_triton_leaks() -> None:
    """Keep nanobind, which triton is built on, from listing on stderr what was not collected.

    torch imports triton where it is installed; nothing of ours writes after this.
    """
    if "triton" in sys.modules:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def tell_deepspeed_of_no_gpu() -> None:
    """Keep deepspeed, which transformers imports, from a warning on stdout about a missing GPU."""
    if sys.platform == "linux" and not any(os.path.exists(device) for device in GPUS):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def run(arguments: list[str]) -> int:
    """Run one command line; return its exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _log_to_stderr():
            code = _invoke(arguments)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) is gone: also keep the flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _explain(error)


def _invoke(arguments: list[str]) -> int:
    import typer

    from llava_tools.cli.app import command

    if arguments[:1] in ([], ["help"]):
        arguments = [*arguments[1:], "--help"]
    elif arguments == ["version"]:
        arguments = ["--version"]
    try:
        with command().make_context(NAME, arguments) as context:
            result = context.command.invoke(context)
    except typer.Exit as done:  # --help and --version
        return done.exit_code
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    """Print what went wrong and what to do; return the exit code."""
    if isinstance(error, UserError):
        _say(f"Error: {error.message}", error.hint)
        return 2
    if hasattr(error, "format_message"):  # click's usage errors, wherever typer keeps them
        _say(f"Error: {_usage_message(error)}", _usage_hint(error))
        return 2
    if isinstance(error, OSError):
        hints = SYSTEM_ERRORS | (PATH_ERRORS if error.filename else {})
        if error.errno in hints:
            place = f": {error.filename}" if error.filename else ""
            _say(f"Error: {error.strerror}{place}", hints[error.errno])
            return 2
    _say(
        f"This is a bug in llava-tools: {type(error).__name__}: {error}",
        "Run the command again with --debug to see where, and please report it.",
    )
    return 1


def _usage_message(error: Exception) -> str:
    option = getattr(error, "option_name", None)
    known = getattr(error, "possibilities", None)
    if option and known is not None:
        return f"No such option: {option}"
    return str(error.format_message())  # type: ignore[attr-defined]


def _usage_hint(error: Exception) -> str:
    """Return the nearest option, or where the command's options are listed."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else NAME
    option = getattr(error, "option_name", None)
    if option and context and "such option" in str(error):
        known = [name for param in context.command.params for name in param.opts]
        close = nearest(option, known)
        if close:
            return f"Did you mean '{close}'? See `{path} --help`."
    return f"See `{path} --help`."


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show our own log on stderr; of several processes only the first speaks."""
    logger = logging.getLogger("llava_tools")
    before = logger.level, logger.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _say(*lines: str) -> None:
    """Write each text as one line; what libraries report may have several."""
    sys.stderr.write("".join(f"{' '.join(line.splitlines())}\n" for line in lines if line))
