"""The quickstart as a table: which command does what, in which order, and into which files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_tools.quickstart.rows import OPEN_QUESTIONS

FORMATS = ("xtuner", "llava", "hf")
CHAT_QUESTION = OPEN_QUESTIONS[0]
CHAT_PICTURE = "data/heldout/0.png"
BLANK = "--blank-images"


@dataclass(frozen=True)
class Stage:
    """One step: a command of llava-tools; without one, the preparation of data and parts.

    `makes` are the paths below the work dir that are there when the stage is done. They belong to
    it: nothing else writes there, and a fresh start of the stage removes them.
    """

    name: str
    title: str
    makes: tuple[str, ...]
    command: tuple[str, ...] = ()
    answers: bool = False  # prints one JSON object, which is kept


def stages(work_dir: Path, checkpoints: dict[str, str]) -> list[Stage]:
    """Return all stages in order. `checkpoints` are the last ones of the runs, below work_dir."""
    where = Where(work_dir)
    return [
        Stage("prepare", "pictures, rows, configs, a tokenizer, random weights", PREPARED),
        where.train("text_sft", "text fine-tuning: the language model learns to look things up"),
        where.convert("llm", "the language model as a folder", checkpoints["text_sft"], "hf"),
        where.train("pretrain", "pretraining on captions: tower and projector learn to be read"),
        where.train("finetune", "fine-tuning on questions about pictures: all parts learn"),
        *(
            where.convert(
                name,
                f"the model in the {name} format, compared with the checkpoint",
                checkpoints["finetune"],
                name,
                "--verify",
            )
            for name in FORMATS
        ),
        *(
            where.chat(f"chat_{name}", f"the {name} folder looks at a new picture", name)
            for name in FORMATS
        ),
        where.evaluate("mmbench", "MMBench: questions about all held-out pictures"),
        where.evaluate("mmbench_blank", "the same questions with grey pictures", BLANK),
    ]


PREPARED = ("data", "parts", "configs")


@dataclass(frozen=True)
class Where:
    """Makes stages with the paths of one work dir, written as the user wrote it."""

    work_dir: Path

    def path(self, name: str) -> str:
        """Return a path below the work dir."""
        return str(self.work_dir / name)

    def train(self, name: str, title: str) -> Stage:
        """Return the stage of a training run."""
        config, run = self.path(f"configs/{name}.py"), self.path(f"runs/{name}")
        return Stage(name, title, (f"runs/{name}",), ("train", config, "--work-dir", run))

    def convert(self, name: str, title: str, source: str, to: str, *options: str) -> Stage:
        """Return the stage of a conversion; in fp32, so that all formats answer alike."""
        folders = self.path(source), self.path(f"models/{name}")
        command = ("convert", *folders, "--to", to, "--dtype", "fp32", *options)
        return Stage(name, title, (f"models/{name}",), command)

    def chat(self, name: str, title: str, model: str) -> Stage:
        """Return the stage of one question to a model."""
        picture = "--image", self.path(CHAT_PICTURE)
        question = "--prompt", CHAT_QUESTION, "--json"
        command = ("chat", self.path(f"models/{model}"), *picture, *question)
        return Stage(name, title, (), command, answers=True)

    def evaluate(self, name: str, title: str, *options: str) -> Stage:
        """Return the stage of an evaluation."""
        data = "--data-path", self.path("data/mmbench.tsv")
        target = "--work-dir", self.path(f"eval/{name}")
        command = ("eval", "mmbench", self.path("models/hf"), *data, *target, *options)
        return Stage(name, title, (f"eval/{name}",), command)
