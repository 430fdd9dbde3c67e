"""Which GGUF files make a model, and opening them."""

from __future__ import annotations

import ctypes
import logging
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llava_tools.chat.gguf_model import GgufAssistant, Runner
from llava_tools.chat.gguf_tokens import GgufTokenizer
from llava_tools.data.templates import guess_template, template_to_ask
from llava_tools.errors import UserError
from llava_tools.model.assembly import read_notes

log = logging.getLogger(__name__)

OLDEST = (0, 3, 36)  # the release whose functions these files call
LONGEST = 8192  # tokens of a conversation; more would reserve memory that few need
ERROR = 4  # ggml's number for errors in its log
KEPT_AS = {"auto": 1, "fp16": 1, "fp32": 0, "bf16": 30}  # ggml's numbers for types


def is_gguf(model: str) -> bool:
    """Whether a model is a GGUF file, or a folder of such."""
    path = Path(model).expanduser()
    return path.suffix == ".gguf" or (
        not (path / "config.json").exists() and any(path.glob("*.gguf"))
    )


def open_gguf(
    model: str,
    *,
    visual_encoder: str | None = None,
    template: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    unused: Mapping[str, Any],
) -> GgufAssistant:
    """Open a GGUF file, or the one in a folder, with the mmproj file beside it.

    `visual_encoder` names another mmproj file, `dtype` is what keys and values are kept in.
    `unused` are options by their flags; those that are set are refused.

    Raises UserError: files that are missing or several, no llama-cpp-python, a template that does
    not fit.
    """
    for flag, value in unused.items():
        if value is not None:
            raise UserError(
                f"{flag} {value} has no use: '{model}' is GGUF, which llama.cpp runs as it is.",
                f"Leave out {flag}, or chat with the folder that the file was converted from.",
            )
    path = Path(model).expanduser()
    file = _model_file(path)
    mmproj = Path(visual_encoder).expanduser() if visual_encoder else _mmproj_beside(file)
    llama = _load(file, dtype, device)
    tokenizer = GgufTokenizer(llama)
    own = "tokenizer" if tokenizer.chat_template else None
    noted = read_notes(file.parent).get("prompt_template")
    name = template or noted or guess_template(tokenizer) or own
    if name is None:
        raise UserError(
            f"Which prompt template '{file}' was trained with is not recorded.",
            "Name it with --prompt-template, for example --prompt-template vicuna.",
        )
    chosen = template_to_ask(name, tokenizer)
    return GgufAssistant(Runner(llama, mmproj), tokenizer, chosen, path)


def server_command(model: str) -> str:
    """Return what serves a GGUF file, or the one in a folder. Raises UserError as `open_gguf`."""
    file = _model_file(Path(model).expanduser())
    mmproj = _mmproj_beside(file)
    tower = f" --mmproj {shlex.quote(str(mmproj))}" if mmproj else ""
    return f"llama-server -m {shlex.quote(str(file))}{tower} --port 8000"


def _model_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"There is no file '{path}'.", "Give a GGUF file or its folder.")
        if _is_mmproj(path):
            raise UserError(
                f"'{path}' is the vision tower alone.", "Give the language model beside it."
            )
        return path
    files = sorted(file for file in path.glob("*.gguf") if not _is_mmproj(file))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "only vision towers"
        raise UserError(f"'{path}' has {names}.", "Give the file of one language model.")
    return files[0]


def _mmproj_beside(file: Path) -> Path | None:
    """Return the one mmproj file of a folder, of several the one that is named alike."""
    files = sorted(other for other in file.parent.glob("*.gguf") if _is_mmproj(other))
    alike = [other for other in files if _plain(other) == _plain(file)]
    chosen = files if len(files) == 1 else alike
    if len(chosen) > 1 or (files and not chosen):
        raise UserError(
            f"'{file.parent}' has several vision towers: {', '.join(f.name for f in files)}.",
            "Name one with --visual-encoder MMPROJ.gguf.",
        )
    return chosen[0] if chosen else None


def _is_mmproj(file: Path) -> bool:
    return "mmproj" in file.name.lower()


def _plain(file: Path) -> str:
    """Return a name without what tells the files of one conversion apart."""
    return file.stem.lower().replace("-mmproj", "").replace("mmproj-", "")


def _load(file: Path, dtype: str, device: str) -> Any:
    cpp = _llama_cpp(file)
    if dtype not in KEPT_AS:
        raise UserError(f"--dtype {dtype} is not known.", f"Choose from {', '.join(KEPT_AS)}.")
    if device.startswith("cuda") and not cpp.llama_supports_gpu_offload():
        raise UserError(
            f"--device {device}: this llama-cpp-python was built for the CPU.",
            "Build it for the GPU, as its documentation says, or leave out --device.",
        )
    options: dict[str, Any] = {
        "n_gpu_layers": 0 if device == "cpu" else -1,
        "n_threads": torch.get_num_threads(),
        "n_threads_batch": torch.get_num_threads(),
        "type_k": KEPT_AS[dtype],
        "type_v": KEPT_AS[dtype],
        "verbose": False,
    }
    _tell_errors_only(cpp)
    try:
        keys = cpp.Llama(str(file), vocab_only=True, verbose=False).metadata
        trained = keys.get(f"{keys.get('general.architecture')}.context_length", LONGEST)
        return cpp.Llama(str(file), n_ctx=min(int(trained), LONGEST), **options)
    except ValueError as error:
        raise UserError(
            f"llama.cpp cannot open '{file}': {error}",
            "Convert it again, or see what it is: llava-tools inspect FILE",
        ) from error


@cache
def _tell_errors_only(cpp: Any) -> Any:
    """Let llama.cpp and its vision tower log errors alone; as they are, they tell everything.

    C keeps the address of the listener alone: it lives as long as what this returns.
    """
    from llama_cpp import mtmd_cpp

    def tell(level: int, text: bytes, data: Any) -> None:
        if level == ERROR:
            log.error(text.decode(errors="replace").strip())

    listener = cpp.llama_log_callback(tell)
    for setter in (cpp.llama_log_set, mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
        setter(listener, ctypes.c_void_p(0))
    return listener


def _llama_cpp(file: Path) -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError(
            f"'{file}' is a GGUF file, which llama.cpp runs: chat needs llama-cpp-python "
            f"('{error.name}' is missing).",
            "pip install llama-cpp-python (it compiles for a quarter of an hour), or use "
            "llama-mtmd-cli -m MODEL.gguf --mmproj MMPROJ.gguf",
        ) from error
    version = tuple(int(part) for part in llama_cpp.__version__.split(".")[:3])
    if version < OLDEST:
        raise UserError(
            f"llama-cpp-python {llama_cpp.__version__} is too old for '{file}'.",
            f"pip install -U 'llama-cpp-python>={'.'.join(map(str, OLDEST))}'",
        )
    return llama_cpp
