"""What the data tools write and say: the rows, a report beside them, a summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.data.tools.files import Tally


@dataclass(frozen=True)
class Output:
    """How rows are read, written and told of: the options that the tools share."""

    format: str = "auto"
    report: Path | None = None
    max_dropped: float = 1.0
    overwrite: bool = False
    as_json: bool = False

    def write(
        self, files: list[Path], out: Path, made: Callable[[Any, Tally], Iterable[Any]]
    ) -> None:
        """Write the rows that `made` makes of those read, and say what became of them.

        Raises UserError where too many were dropped, after all is written.
        """
        tally = self.fill(files, out, made)
        self.say({"out": str(out)} | tally.summary())
        self.check(out, tally)

    def fill(
        self, files: list[Path], out: Path, made: Callable[[Any, Tally], Iterable[Any]]
    ) -> Tally:
        """Write the rows, and the report beside them; return the counts."""
        from llava_tools.data.tools.files import Tally, check_out, read_all, writing

        check_out(out, files, overwrite=self.overwrite)
        check_beside("--report", self.report, [*files, out], overwrite=self.overwrite)
        tally = Tally()
        with ExitStack() as stack:
            write = stack.enter_context(writing(out))
            if self.report is not None:
                tally.report = stack.enter_context(writing(self.report, lines=True))
            for row in made(read_all(files, tally, self.format), tally):
                write(row)
                tally.written += 1
        return tally

    def say(self, summary: dict[str, Any]) -> None:
        """Print a summary, for people or for scripts."""
        if self.as_json:
            typer.echo(json.dumps(summary))
            return
        typer.echo(
            f"{summary['rows']:,} rows read, {summary['written']:,} written: {summary['out']}"
        )
        for kind, counts in (("dropped", summary["dropped"]), ("note", summary["notes"])):
            for reason, number in counts.items():
                typer.echo(f"  {kind} {number:,} x {reason}")

    def check(self, out: Path, tally: Tally) -> None:
        """Raise UserError where more rows were dropped than --max-dropped allows."""
        dropped = sum(tally.reasons.values())
        if dropped > self.max_dropped * tally.rows:
            raise UserError(
                f"{dropped:,} of {tally.rows:,} rows were dropped, more than --max-dropped "
                f"{self.max_dropped:g} allows.",
                f"'{out}' is written all the same. Mend the data, or raise --max-dropped.",
            )


def counter(tokenizer: str | None) -> Callable[[str], int]:
    """Return what measures a text: in tokens of the tokenizer in a folder, or in characters."""
    if tokenizer is None:
        return len
    from llava_tools.model.load import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def check_beside(option: str, path: Path | None, others: list[Path], *, overwrite: bool) -> None:
    """Refuse a file beside OUT that is an input or OUT itself, or that is there already."""
    if path is None:
        return
    if any(path.resolve() == other.resolve() for other in others):
        raise UserError(f"{option} '{path}' is an input or OUT.", "Name another file.")
    if path.exists() and not overwrite:
        raise UserError(f"{option} '{path}' exists.", "Name another, or give --overwrite.")
