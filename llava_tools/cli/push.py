"""`llava-tools push`."""

from __future__ import annotations

import json
from typing import Annotated

from typer import Argument, Option, echo

from llava_tools.cli.options import Json

Folder = Annotated[str, Argument(metavar="FOLDER", help="A model, adapter or tokenizer folder.")]
Repo = Annotated[str, Argument(metavar="USER/NAME", help="The repository on the hub.")]
Private = Annotated[bool, Option("--private", help="Nobody else may see it.")]
AdapterOnly = Annotated[bool, Option("--adapter-only", help="Only the LLM's adapter in FOLDER.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check and list the files; send nothing.")]


def push(
    folder: Folder,
    repo: Repo,
    private: Private = False,
    adapter_only: AdapterOnly = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send a folder to the Hugging Face hub, in one commit.

    The token comes from `hf auth login` or from HF_TOKEN.
    """
    from llava_tools.chat.push import check_name, plan_upload
    from llava_tools.chat.push import push as send

    check_name(repo)
    upload = plan_upload(folder, adapter_only)
    for name, size in upload.files.items():
        echo(f"{size / 1e6:10.2f} MB  {name}", err=True)
    what = f"{upload.kind}: {len(upload.files)} files, {upload.bytes / 1e6:.2f} MB"
    echo(f"{what}{', private' if private else ''} -> {repo}", err=True)
    report = {"kind": upload.kind, "repo": repo, "files": dict(upload.files), "private": private}
    report["sent"] = not dry_run
    if not dry_run:
        report |= send(upload, repo, private=private)
    echo(json.dumps(report) if as_json else report.get("url", "Nothing was sent (--dry-run)."))
