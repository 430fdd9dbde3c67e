"""`push`: complete folders only, all files in one commit, and clear words when it cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_tools.chat.push import plan_upload, push
from llava_tools.cli.entry import run as command
from llava_tools.errors import UserError
from tests import tiny
from tests.fake_hub import Hub, fake_hub
from tests.model.checkpoints import edit_json
from tests.model.test_adapted import write_adapter

TOKEN = "hf_" + "s" * 34


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process's client talks to."""
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def adapter(parts: Path, tmp_path: Path) -> Path:
    """An adapter whose base has a name on the hub."""
    write_adapter(parts / "vicuna", tmp_path / "x/llm_adapter")
    edit_json(
        tmp_path / "x/llm_adapter/adapter_config.json", base_model_name_or_path="lmsys/vicuna"
    )
    return tmp_path / "x"


def test_a_model_arrives_in_one_commit(
    parts: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save_xtuner(tmp_path / "model", parts)
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("token")
    (folder / ".env").write_text("secret")
    assert command(["push", str(folder), "me/model", "--private", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["kind"] == "model" and report["sent"] and report["private"]
    assert hub.private == {"me/model": True}
    (sent,) = hub.commits
    held = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")
    }
    assert sent == held and "visual_encoder/model.safetensors" in sent
    assert list(report["files"])[-1] == "config.json"
    assert report["files"] == {name: len(content) for name, content in held.items()}
    assert TOKEN not in out + err and f"Bearer {TOKEN}" in hub.tokens
    posts = [line for line in hub.asked if line.startswith("POST")]
    assert [line.split("/")[-1] for line in posts[:1]] == ["create"] and "/commit/" in posts[-1]


def test_large_files_arrive_as_objects(
    parts: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By git-lfs, which the hub's client takes where its own storage (xet) is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.large = 100_000
    upload = plan_upload(parts / "phi3")
    content = (parts / "phi3/model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    hub.refuse = {"/lfs/": 403}
    with pytest.raises(UserError, match=r"does not let you write to 'me/model' \(403\)"):
        push(upload, "me/model")
    assert not hub.commits and not hub.objects
    hub.refuse = {}
    push(upload, "me/model")
    assert hub.objects == {digest: content}
    assert hub.commits[0]["model.safetensors"] == f"sha256:{digest}".encode()
    assert hub.commits[0]["config.json"] == (parts / "phi3/config.json").read_bytes()


def test_large_files_go_by_xet_where_it_is_installed(parts: Path, hub: Hub) -> None:
    """The fake hub has no such storage: it is asked for it, and refuses."""
    pytest.importorskip("hf_xet")
    hub.large = 100_000
    hub.refuse = {"xet-write-token": 403}
    with pytest.raises(UserError, match=r"does not let you write to 'me/model' \(403\)") as caught:
        push(plan_upload(parts / "phi3"), "me/model")
    assert TOKEN not in caught.value.message and not hub.commits and not hub.objects
    assert any("xet-write-token" in line for line in hub.asked)


def test_an_adapter_goes_alone(adapter: Path, hub: Hub) -> None:
    upload = plan_upload(adapter, adapter_only=True)
    assert upload.kind == "adapter" and upload.folder.name == "llm_adapter"
    assert not push(upload, "me/lora")["private"]
    assert hub.private == {"me/lora": False}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(hub.commits[0])
    assert list(upload.files)[-1] == "adapter_config.json"
    assert plan_upload(adapter).kind == "adapter"  # with the folder around it


def test_a_tokenizer_goes_alone(tmp_path: Path) -> None:
    tiny.save_tokenizer(tmp_path / "t", "phi3")
    (tmp_path / "t/notes.txt").write_text("mine")
    upload = plan_upload(tmp_path / "t")
    assert upload.kind == "tokenizer"
    assert set(upload.files) == {"tokenizer.json", "tokenizer_config.json"}


def test_a_dry_run_sends_nothing(parts: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["push", str(parts / "phi3"), "me/model", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "model.safetensors" in err and "model: " in err and "Nothing was sent" in out
    assert command(["push", str(parts / "phi3"), "my model", "--dry-run"]) == 2
    assert "'my model' is no name of a repository" in capsys.readouterr().err
    assert not hub.asked


def test_incomplete_folders_are_refused(parts: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        plan_upload(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file; what is sent is a folder") as told:
        plan_upload(parts / "phi3/config.json")
    assert "llava-tools convert" in told.value.hint
    with pytest.raises(UserError, match="holds no adapter apart"):
        plan_upload(parts / "phi3", adapter_only=True)
    folder = tmp_path / "model"
    shutil.copytree(parts / "phi3", folder)
    (folder / "tokenizer.json").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="holds no tokenizer"):
        plan_upload(folder)
    (tmp_path / "kept").rename(folder / "tokenizer.json")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="model.safetensors"):
        plan_upload(folder)
    weights.unlink()
    with pytest.raises(UserError):
        plan_upload(folder)
    config = adapter / "llm_adapter/adapter_config.json"
    edit_json(config, base_model_name_or_path=str(parts / "vicuna"))
    beside = (adapter / "llava_tools.json", adapter / "llm_adapter/llava_tools.json")
    for notes in beside:
        notes.write_text(json.dumps({"base": {"llm": str(parts / "vicuna"), "mark": {}}}))
    with pytest.raises(UserError, match="is named by a path of this machine") as caught:
        plan_upload(adapter)
    for place in (f"base_model_name_or_path in '{config}'", *(f"llm in '{f}'" for f in beside)):
        assert place in caught.value.message
    edit_json(config, base_model_name_or_path="lmsys/vicuna")
    edit_json(beside[0], base={"llm": "lmsys/vicuna", "visual_encoder": str(parts / "clip")})
    edit_json(beside[1], base={"llm": "lmsys/vicuna"})
    with pytest.raises(UserError, match=r"parts\d*/clip': base.visual_encoder in '[^']*'\."):
        plan_upload(adapter)
    edit_json(beside[0], base={"llm": "lmsys/vicuna", "visual_encoder": "openai/clip"})
    assert "llava_tools.json" in plan_upload(adapter).files
    (adapter / "llm_adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no adapter_model.safetensors"):
        plan_upload(adapter)


def test_links_out_of_the_folder_are_refused(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "phi3", tmp_path / "model")
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "model/readme.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside the folder"):
        plan_upload(tmp_path / "model")


def test_a_public_repository_does_not_become_private(parts: Path, hub: Hub) -> None:
    upload = plan_upload(parts / "phi3")
    push(upload, "me/model")
    with pytest.raises(UserError, match="is there already, and public; nothing was sent"):
        push(upload, "me/model", private=True)
    push(upload, "me/model")
    assert len(hub.commits) == 2


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ({"create": 401}, r"does not let you write to 'me/model' \(401\)"),
        ({"commit": 403}, r"does not let you write to 'me/model' \(403\)"),
        ({"commit": 400}, "refused the upload to 'me/model'"),
        ({"commit": 409}, "refused the upload to 'me/model'.*409"),
        ({"commit": 500}, r"failed over the upload to 'me/model' \(500\)"),
        (
            {"create": 409},
            "'me/model' was answered otherwise than the hub answers: KeyError: 'url'",
        ),
        ({"preupload": 203}, "'me/model' was answered otherwise than the hub.*: ValueError: preup"),
    ],
)
def test_refusals_of_the_hub(parts: Path, hub: Hub, refuse: dict[str, int], message: str) -> None:
    hub.refuse = refuse
    with pytest.raises(UserError, match=message) as caught:
        push(plan_upload(parts / "phi3"), "me/model")
    assert TOKEN not in caught.value.message and not hub.commits


def test_names_and_networks(parts: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = plan_upload(parts / "phi3")
    with pytest.raises(UserError, match="is no name of a repository"):
        push(upload, "a/b/c")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="The hub cannot be reached"):
        push(upload, "me/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="The hub cannot be reached") as caught:
        push(upload, "me/model")
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_the_command_in_a_process_of_its_own(parts: Path, tmp_path: Path) -> None:
    with fake_hub() as hub:
        settings: dict[str, Any] = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        settings |= {"HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        words = [sys.executable, "-m", "llava_tools", "push", str(parts / "phi3"), "me/model"]
        done = subprocess.run(
            words, env=os.environ | settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.url}/me/model"
        assert TOKEN not in done.stdout + done.stderr
        assert set(hub.commits[0]) >= {"model.safetensors", "tokenizer.json", "config.json"}
