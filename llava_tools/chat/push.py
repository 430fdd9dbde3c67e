"""`llava-tools push`: a finished folder to the Hugging Face hub, checked before anything is sent.

The token is the hub client's own affair (HF_TOKEN, or `hf auth login`): it is never read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError, first_line
from llava_tools.model.adapted import base_of, is_adapter, read_llm_adapter
from llava_tools.model.adapters import CONFIG, FOLDERS, read_adapters
from llava_tools.model.assembly import NOTES, read_notes
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.source import open_source

TOKENIZER = ("tokenizer.json", "tokenizer.model")
TOKENIZER_FILES = (
    *TOKENIZER,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
# What training and we leave in folders that is nobody else's business.
KEPT_BACK = ("__pycache__",)
LAST = ("config.json", CONFIG)  # without them a folder that came half is no model


@dataclass(frozen=True)
class Upload:
    """What would be sent: what the folder holds, and its files with their sizes."""

    folder: Path
    kind: str  # model, adapter or tokenizer
    files: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def plan_upload(folder: str | Path, adapter_only: bool = False) -> Upload:
    """Look through a folder. Raises UserError unless it is complete and ours to send.

    `adapter_only` takes the LLM's adapter alone out of a folder that holds more.
    """
    path = Path(folder).expanduser()
    if path.is_file():
        raise UserError(
            f"'{path}' is a file; what is sent is a folder.",
            f"Of a checkpoint: llava-tools convert {path} DST --to hf, or --to xtuner "
            "--adapter-only.",
        )
    if not path.is_dir():
        raise UserError(f"There is no folder '{path}'.", "Give the folder of a model or adapter.")
    inner = path / FOLDERS["llm"]
    if adapter_only and inner.is_dir():
        path = inner
    if adapter_only and not is_adapter(path):
        raise UserError(
            f"'{path}' holds no adapter apart.",
            "Write one with: llava-tools convert ITER.pth DST --to xtuner --adapter-only",
        )
    kind = _kind(path)
    _CHECKS[kind](path)
    files = _files(path)
    if kind == "tokenizer":
        files = {name: size for name, size in files.items() if name in TOKENIZER_FILES}
    return Upload(path, kind, dict(sorted(files.items(), key=_order)))


def _kind(path: Path) -> str:
    if is_adapter(path) or any((path / name).is_dir() for name in FOLDERS.values()):
        return "adapter"
    tokenizer = any((path / name).is_file() for name in TOKENIZER)
    model = (path / "config.json").is_file() or (path / "projector").is_dir()
    return "tokenizer" if tokenizer and not model else "model"


def _check_adapter(path: Path) -> None:
    held = read_adapters(path)
    if not held:
        adapter = read_llm_adapter(path)
        base_of(adapter)
        held = {"llm": adapter}
    named = [(a.folder / CONFIG, "base_model_name_or_path", a.base) for a in held.values()]
    for folder in sorted({path, *(adapter.folder for adapter in held.values())}):
        bases = read_notes(folder).get("base")
        if isinstance(bases, Mapping):
            named += [(folder / NOTES, f"base.{part}", bases.get(part)) for part in FOLDERS]
    _check_base_names(named)


def _check_base_names(named: Sequence[tuple[Path, str, Any]]) -> None:
    """A path of this machine says nothing to others, and may say more than one wants."""
    local = [(f"{key} in '{file}'", base) for file, key, base in named if _is_local(base)]
    if local:
        raise UserError(
            f"The base is named by a path of this machine, '{local[0][1]}': "
            f"{', '.join(where for where, _ in local)}.",
            "Put the base's name on the hub there.",
        )


def _is_local(base: Any) -> bool:
    return bool(base) and (Path(str(base)).is_absolute() or Path(str(base)).exists())


def _check_model(path: Path) -> None:
    source = open_source(path)
    if not any((path / name).is_file() for name in TOKENIZER):
        raise UserError(
            f"'{path}' holds no tokenizer.", "Copy tokenizer.json (or .model) of its LLM there."
        )
    for tensor in source.tensors.values():
        _read_a_value(tensor)


def _read_a_value(tensor: LazyTensor) -> None:
    """Read the last value of a tensor: a file that was cut short lacks it."""
    if tensor.elements is not None and tensor.count:
        tensor.elements(tensor.count - 1, tensor.count)


def _check_tokenizer(path: Path) -> None:
    from llava_tools.model.load import load_tokenizer

    load_tokenizer(path)


_CHECKS = {"model": _check_model, "adapter": _check_adapter, "tokenizer": _check_tokenizer}


def _files(path: Path) -> dict[str, int]:
    """Return names and sizes of the files in a folder. Raises UserError for links out of it."""
    found: dict[str, int] = {}
    root = path.resolve()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") or part in KEPT_BACK for part in name.parts)
        if hidden or not file.is_file():
            continue
        if file.is_symlink() and root not in file.resolve().parents and not _in_cache(file):
            raise UserError(
                f"'{file}' is a link to '{file.resolve()}', outside the folder.",
                "Put the file itself there, if it is to be sent.",
            )
        found[name.as_posix()] = file.stat().st_size
    return found


def _in_cache(file: Path) -> bool:
    """Tell whether a link leads to a blob of the hub's cache, which consists of them."""
    return file.resolve().parent.name == "blobs"


def _order(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] in LAST, item[0]


def check_name(repo: str) -> None:
    """Raise UserError for a name that the hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"'{repo}' is no name of a repository: {first_line(error)}", "Write it as USER/NAME."
        ) from error


def push(upload: Upload, repo: str, *, private: bool = False) -> dict[str, Any]:
    """Send all files in one commit, which is there whole or not at all; return where it is.

    Raises UserError: no token, a name or a repository that the hub refuses, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_name(repo)
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        _check_private(api, url.repo_id, private)
        commit = api.create_commit(
            url.repo_id,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=upload.folder / name)
                for name in upload.files
            ],
            commit_message=f"Add {upload.kind} with llava-tools",
        )
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _failed(error, repo) from error
    return {"url": str(commit.repo_url), "commit": commit.oid, "private": private}


def _check_private(api: Any, repo: str, private: bool) -> None:
    """A repository that is there already keeps its own visibility, which must be the wanted one."""
    if private and not api.repo_info(repo).private:
        raise UserError(
            f"The repository '{repo}' is there already, and public; nothing was sent.",
            "Leave out --private, choose another name, or make it private on the hub first.",
        )


def _failed(error: Exception, repo: str) -> UserError:
    """Turn what the hub's client raises into what is wrong and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None) or _told(error)
    if status in (401, 403):
        return UserError(
            f"The hub does not let you write to '{repo}' ({status}).",
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there.",
        )
    if status is not None and status >= 500:
        return UserError(
            f"The hub failed over the upload to '{repo}' ({status}): {first_line(error)}",
            "That is a fault of its own. Nothing changed here; run this again later.",
        )
    if status is not None:
        return UserError(
            f"The hub refused the upload to '{repo}': {first_line(error)}",
            "No file arrived there, nothing changed here; mend what it names and run this again.",
        )
    return _unreachable(error, repo)


def _told(error: Exception) -> int | None:
    """Return the status that a refused upload by xet has in its words alone."""
    found = re.search(r"HTTP status (?:client|server) error \((\d{3})\b", str(error))
    return int(found[1]) if found else None


def _unreachable(error: Exception, repo: str) -> UserError:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return UserError(
            "There is no token for the hub.", "Log in with `hf auth login`, or set HF_TOKEN."
        )
    # The client's own library for HTTP differs between its releases.
    broken = any(kind.__name__ in ("TransportError", "HTTPError") for kind in type(error).__mro__)
    if broken or isinstance(error, (OfflineModeIsEnabled, OSError)):
        return UserError(
            f"The hub cannot be reached: {first_line(error)}",
            f"Nothing was sent to '{repo}', nothing changed here. Go online (and unset "
            "HF_HUB_OFFLINE), then run this again.",
        )
    if isinstance(error, (KeyError, ValueError)):  # the client trusts what it is answered
        return UserError(
            f"'{repo}' was answered otherwise than the hub answers: {type(error).__name__}: "
            f"{first_line(error)}",
            "Is HF_ENDPOINT right, or is a proxy in between? Look whether a commit is there, which "
            "holds all files or none, and run this again; nothing changed here.",
        )
    raise error
