"""Open a model of any format as canonical tensors and the configs of its parts.

pth     a training checkpoint (a file, or DeepSpeed's directory) with its run's config
xtuner  a language model folder with `visual_encoder/` and `projector/` in it
llava   haotian-liu/LLaVA's folder
hf      transformers' LlavaForConditionalGeneration, or any causal LM without vision
adapter a folder with an LLM's LoRA alone, which names its base
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from llava_tools.errors import UserError, first_line
from llava_tools.model.adapted import base_of, is_adapter, read_llm_adapter, with_adapter
from llava_tools.model.adapters import Adapter
from llava_tools.model.assembly import NOTES, Source, assemble
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.openers import factors_apart, open_hf, open_llava, open_pth, open_xtuner
from llava_tools.model.parts import read_llm, read_projector, read_vision, resolve_folder
from llava_tools.model.trained import SUFFIXES, read_checkpoint
from llava_tools.model.weights import read_json
from llava_tools.model.zero import is_zero_dir

__all__ = [
    "NOTES",
    "Source",
    "detect",
    "inspect",
    "open_adapted",
    "open_parts",
    "open_source",
    "read_checkpoint",
]


# What values of other kinds than a config's should be end in, in our hands or transformers'.
_WRONG_VALUES = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    StrictDataclassError,
)


def detect(path: str | Path) -> str:
    """Return the format of a file or folder: pth, xtuner, llava, hf or adapter.

    Raises UserError naming what was found and what was expected.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is nothing at '{path}'.", "Check the path.")
    if path.is_file():
        if path.suffix in SUFFIXES:
            return "pth"
        raise _no_model(path, f"a file ending in '{path.suffix}'")
    if is_zero_dir(path):
        return "pth"
    if (path / "projector").is_dir():
        return "xtuner"
    if is_adapter(path):
        return "adapter"
    if not (path / "config.json").is_file():
        names = sorted(entry.name for entry in path.iterdir())
        raise _no_model(path, f"a folder with {', '.join(names[:5])}" if names else "empty")
    config = read_json(path / "config.json")
    if "mm_vision_tower" in config or "mm_projector_type" in config:
        return "llava"
    kind, names = str(config.get("model_type")), config.get("architectures") or []
    if not isinstance(names, list):
        raise _no_model(path, f"a model with the architectures {names!r}")
    causal = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if kind == "llava" or causal or (not names and not kind.startswith(("clip", "siglip"))):
        return "hf"
    raise _no_model(path, f"a model of type '{kind}'")


def _no_model(path: Path, found: str) -> UserError:
    saved = sorted(path.glob("iter_*.pth"), key=lambda file: file.stat().st_mtime)
    return UserError(
        f"'{path}' is no LLaVA that is known here: {found}.",
        f"Give one of its checkpoints, for example {saved[-1]}."
        if saved
        else "Expected a checkpoint (iter_N.pth), or a folder in the xtuner, llava or hf format.",
    )


def open_source(
    path: str | Path, config: str | None = None, overrides: Sequence[str] = ()
) -> Source:
    """Open a model (a path, or a hub id) for conversion or inference; weights are read lazily.

    `config` is the config of the run, for a checkpoint without a config.py beside it and for an
    xtuner folder that holds only what was trained; `overrides` are its `key=value` changes.

    Raises UserError when it cannot be recognised, or is incomplete.
    """
    path = _local(path)
    try:
        return _opened(path, config, overrides)
    except _WRONG_VALUES as error:
        raise UserError(
            f"'{path}' cannot be opened: {type(error).__name__}: {first_line(error)}",
            "A value in one of its config files is missing or of a wrong kind; copy it again.",
        ) from error


def _opened(path: Path, config: str | None, overrides: Sequence[str]) -> Source:
    kind = detect(path)
    if kind == "adapter":
        return open_adapted(path)[0]
    if kind == "pth":
        return open_pth(path, config, overrides)
    if kind == "xtuner":
        return open_xtuner(path, config, overrides)
    return open_llava(path) if kind == "llava" else open_hf(path)


def open_adapted(
    path: str | Path,
    config: str | None = None,
    adapter: str | Path | None = None,
    *,
    apart: bool = False,
) -> tuple[Source, Adapter | None]:
    """Open a model under an adapter for its LLM, or an adapter's folder with the base it names.

    Returns the source with the adapter merged in; with `apart`, for packed weights, the source
    without its factors, and the adapter.
    """
    local = _local(path)
    if adapter is None and detect(local) != "adapter":
        source = open_source(local, config)
        return factors_apart(source, config) if apart else (source, None)
    held = read_llm_adapter(local if adapter is None else _local(adapter))
    base = _named_base(held) if adapter is None else open_source(local, config)
    return with_adapter(base, held, apart=apart), held if apart else None


def _named_base(adapter: Adapter) -> Source:
    """Open the base that an adapter names. Raises UserError that tells who named it."""
    name = base_of(adapter)
    if Path(name).is_absolute() and not Path(name).exists():
        raise UserError(
            f"The base of '{adapter.folder}' is not here: '{name}'.",
            "Give the base as the MODEL and this folder with --adapter.",
        )
    return open_source(name)


def _local(path: str | Path) -> Path:
    """Return the folder of a hub id, any other path as it is."""
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not str(path).endswith(SUFFIXES)
    if named and not Path(path).parent.exists():
        return resolve_folder(path)
    return Path(path).expanduser()


def open_parts(llm: str | Path, vision: str | Path, projector: str | Path) -> Source:
    """Open a model given as three parts, as XTuner's scripts take it."""
    parts = read_llm(llm), read_vision(vision), read_projector(projector)
    return assemble(Path(llm), "xtuner", *parts, {}, str(vision))


def inspect(path: str | Path, config: str | None = None) -> dict[str, Any]:
    """Return what lies at `path`: format, parts with sizes and dtypes, how it was trained.

    Of a checkpoint without a config, what was trained is all that can be told.
    """
    path = _local(path)
    kind = detect(path)
    beside = Path(path).parent / "config.py"
    if kind == "pth" and config is None and not beside.is_file():
        trained = read_checkpoint(path)
        return {"path": str(path), "format": kind, "trained": _sizes(trained)}
    source = open_source(path, config)
    report: dict[str, Any] = {"path": str(path), "format": kind, "parts": _sizes(source.tensors)}
    if kind == "pth":
        report["trained"] = _sizes(read_checkpoint(path))
    report["llm"] = _some(source.llm_config, "model_type", "hidden_size", "num_hidden_layers")
    if source.vision_config is not None and source.projector_config is not None:
        vision = _some(source.vision_config, "model_type", "image_size", "patch_size")
        report["visual_encoder"] = vision | {"select_layer": source.visual_select_layer}
        report["projector"] = _some(source.projector_config, "depth", "hidden_act")
        report["pad_image_to_square"] = source.pad_image_to_square
    return report | {"prompt_template": source.prompt_template}


def _sizes(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, Any]]:
    """Return for every part its number of tensors and parameters, its bytes and dtypes."""
    parts: dict[str, list[LazyTensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.split(".")[0], []).append(tensor)
    return {
        name: {
            "tensors": len(held),
            "parameters": sum(tensor.nbytes // tensor.dtype.itemsize for tensor in held),
            "bytes": sum(tensor.nbytes for tensor in held),
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in held}),
        }
        for name, held in parts.items()
    }


def _some(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config.get(key) for key in keys}
