"""The settings of image preprocessing: reading and writing preprocessor_config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError

CONFIG_NAMES = ("preprocessor_config.json", "processor_config.json")  # the second: 5.x, folded in

_CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}
_SIGLIP = {
    "image_processor_type": "SiglipImageProcessor",
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 224, "width": 224},
}
# Every name that transformers gave the two over time, with the values its class assumes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "CLIPImageProcessorFast": _CLIP,
    "CLIPImageProcessorPil": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    "SiglipImageProcessorFast": _SIGLIP,
    "SiglipImageProcessorPil": _SIGLIP,
}
_ALWAYS = ("do_resize", "do_rescale", "do_normalize")  # a tower without these has not been seen


@dataclass(frozen=True)
class Preprocessing:
    """How a tower wants its images. `size` is the side of the result.

    `shortest_edge` keeps the proportions and cuts out the centre; None squeezes the whole image.
    """

    kind: str
    size: int
    shortest_edge: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 3  # Pillow's number: bicubic
    rescale_factor: float = 1 / 255

    @classmethod
    def from_dict(cls, config: dict[str, Any], where: str) -> Preprocessing:
        """Read the content of a config file. Raises UserError naming the file and the key."""
        name = config.get("image_processor_type") or config.get("feature_extractor_type")
        if name not in DEFAULTS:
            raise UserError(
                f"{where}: the image processor '{name}' is not supported.",
                f"Supported: {', '.join(DEFAULTS)}.",
            )
        values = DEFAULTS[name] | {"resample": 3, "rescale_factor": 1 / 255} | config
        for key in _ALWAYS:
            if values.get(key, True) is not True:
                raise UserError(f"{where}: '{key}' = {values[key]} is not supported.", _HINT)
        try:
            size, shortest_edge = _sizes(values)
            return cls(
                kind=str(DEFAULTS[name]["image_processor_type"]),
                size=size,
                shortest_edge=shortest_edge,
                mean=_three(values["image_mean"]),
                std=_three(values["image_std"]),
                resample=int(values["resample"]),
                rescale_factor=float(values["rescale_factor"]),
            )
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{where} cannot be used: {error}.", _HINT) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a classic preprocessor_config.json, which every reader knows."""
        square = {"height": self.size, "width": self.size}
        crops = self.shortest_edge is not None
        crop = {"do_center_crop": crops, "crop_size": square}
        return {
            "image_processor_type": self.kind,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.shortest_edge} if crops else square,
            "resample": self.resample,
            **(crop if self.kind == _CLIP["image_processor_type"] else {}),
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


_HINT = "Take the tower's published preprocessor_config.json."


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} channels instead of 3")
    return numbers


def _sizes(values: dict[str, Any]) -> tuple[int, int | None]:
    """Return `size` and `shortest_edge`; a bare number (old CLIP configs) is a shortest edge."""
    size = values["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if values["do_center_crop"] else _square(size)
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    result = _side(values["crop_size"] if values["do_center_crop"] else size)
    if edge is not None and (not values["do_center_crop"] or edge < result):
        raise ValueError(f"size {edge} and crop_size {result} do not give a square")
    if edge is None and _side(size) != result:
        raise ValueError(f"size {_side(size)} and crop_size {result} differ")
    return result, edge


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _side(size: Any) -> int:
    square = _square(size) if isinstance(size, int) else size
    if not isinstance(square, dict) or not {"height", "width"} <= set(square):
        raise ValueError(f"{size!r:.60} gives no height and width")
    if square["height"] != square["width"] or square["height"] < 1:
        raise ValueError(f"{square['height']} x {square['width']} pixels are no square")
    return int(square["height"])


def read_config(name_or_path: str) -> tuple[dict[str, Any], str]:
    """Return what `find_config` does. Raises UserError when there are no settings."""
    found = find_config(name_or_path)
    if found is None:
        raise UserError(
            f"No preprocessor_config.json at '{name_or_path}'.",
            "Give a vision tower's folder, or a hub id that is downloaded already.",
        )
    return found


def find_config(name_or_path: str) -> tuple[dict[str, Any], str] | None:
    """Return the image processor's settings of a model folder or hub id, and their file's path.

    None when there are none. Raises UserError for a broken file.
    """
    for name in CONFIG_NAMES:
        path = _find(name_or_path, name)
        if path is None:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{path}' is no JSON file: {error}.", _HINT) from error
        found = content.get("image_processor", content) if isinstance(content, dict) else {}
        if "image_mean" in found or "image_processor_type" in found:
            return found, str(path)
    return None


def _find(name_or_path: str, name: str) -> Path | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path, name)
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name_or_path, name)
    except OSError:  # neither downloaded nor reachable
        return None
    return Path(found) if found else None
