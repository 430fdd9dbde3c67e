"""The three training runs of the quickstart as config files, such as one writes by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_tools.config import DatasetSpec, Settings, config_text
from llava_tools.quickstart.digits import PICTURES
from llava_tools.quickstart.rows import TEXT_EXAMPLE
from llava_tools.quickstart.stages import CHAT_QUESTION

EXAMPLE = "example.png"  # a training picture, for the sample answers during training
RUNS = ("text_sft", "pretrain", "finetune")
NOTES = {
    "text_sft": "Text fine-tuning: no pictures; a digit is described, then named or looked up.",
    "pretrain": "Pretraining on captions: the language model is frozen and has to be reached.",
    "finetune": "Fine-tuning on questions with options, and captions: all parts learn.",
}


@dataclass(frozen=True)
class Scale:
    """How much of everything. The defaults are the quickstart; smaller ones are for tests."""

    held_out: int = 300
    copies: int = 4  # varied copies of each training picture
    text_rows: int = 20_000
    choices: int = 3  # multiple-choice rows for each training picture, beside its caption
    blind_rows: int = 1500  # multiple-choice rows with an empty page instead of the digit
    batch_size: int = 64
    epochs: dict[str, int] = field(
        default_factory=lambda: {"text_sft": 3, "pretrain": 4, "finetune": 1}
    )

    @property
    def rows(self) -> dict[str, int]:
        """Return the number of training rows of each run."""
        pictures = (PICTURES - self.held_out) * (1 + self.copies)
        counts = self.text_rows, pictures, pictures * (1 + self.choices) + self.blind_rows
        return dict(zip(RUNS, counts, strict=True))


def run_settings(root: Path, scale: Scale, seed: int) -> dict[str, Settings]:
    """Return the settings of each run; `root` is the absolute work dir.

    What differs from the published recipes: learning rates for a model of this size, fp32 for the
    CPU, and a vision tower that learns too, because it starts from random weights.
    """
    parts, tower = root / "parts", str(root / "parts" / "clip")
    sees = {"visual_encoder_name_or_path": tower, "freeze_visual_encoder": False}
    shown = {
        "evaluation_images": (str(root / "data" / EXAMPLE),),
        "evaluation_inputs": (CHAT_QUESTION,),
    }
    llm = str(root / "models" / "llm")
    special: dict[str, dict[str, Any]] = {
        "text_sft": {
            "llm_name_or_path": str(parts / "phi3"),
            "lr": 3e-3,
            "evaluation_inputs": (TEXT_EXAMPLE,),
        },
        "pretrain": {"llm_name_or_path": llm, "freeze_llm": True, "lr": 4e-3, **sees, **shown},
        "finetune": {
            "llm_name_or_path": llm,
            "pretrained_pth": str(root / last_checkpoint(scale, "pretrain")),
            "lr": 1e-3,
            **sees,
            **shown,
        },
    }
    return {name: _settings(name, root / "data", scale, seed, special[name]) for name in RUNS}


def _settings(name: str, data: Path, scale: Scale, seed: int, special: dict[str, Any]) -> Settings:
    spec = DatasetSpec(
        data_path=str(data / f"{name}.json"),
        image_folder="" if name == "text_sft" else str(data),
        pad_image_to_square=name == "finetune",
    )
    return Settings(
        prompt_template="phi3_chat",
        datasets=(spec,),
        activation_checkpointing=False,
        max_length=128,
        num_workers=1,
        batch_size=scale.batch_size,
        max_epochs=scale.epochs[name],
        betas=(0.9, 0.98),
        dtype="fp32",
        save_steps=200,
        save_total_limit=1,
        evaluation_freq=200,
        seed=seed,
        **special,
    )


def last_checkpoint(scale: Scale, name: str) -> str:
    """Return the last checkpoint of a run, below the work dir."""
    per_epoch = -(-scale.rows[name] // scale.batch_size)
    return f"runs/{name}/iter_{scale.epochs[name] * per_epoch}.pth"


def write_configs(folder: Path, settings: dict[str, Settings]) -> None:
    """Write a config file for each run, with what differs from the defaults."""
    folder.mkdir(parents=True)
    for name, chosen in settings.items():
        text = f'"""{NOTES[name]}"""\n\n{config_text(chosen, defaults=False)}'
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
