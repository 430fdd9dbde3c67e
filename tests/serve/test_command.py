"""`llava-tools serve` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from llava_tools.cli.entry import run
from llava_tools.model.load import Assistant
from tests import tiny


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "llava_tools", "serve", *words]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_it_is_stopped(parts: Path, tmp_path: Path, stop: signal.Signals) -> None:
    model = tiny.save_xtuner(tmp_path / "my-model", parts, "phi3")
    env = os.environ | {"LLAVA_TOOLS_API_KEY": "sesame"}
    process = subprocess.Popen(
        command(str(model), "--port", "0"), stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if "answers at" in line)
    found = re.search(r"my-model answers at (http://127\.0\.0\.1:\d+/v1)", line)
    assert found, line
    client = openai.OpenAI(base_url=found[1], api_key="sesame", max_retries=0)
    [model_name] = [model.id for model in client.models.list()]
    said = client.chat.completions.create(
        model=model_name, messages=[{"role": "user", "content": "hi"}], max_tokens=3
    )
    assert model_name == "my-model" and said.choices[0].message.content is not None
    process.send_signal(stop)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken(parts: Path, tmp_path: Path) -> None:
    model = tiny.save_xtuner(tmp_path / "m", parts, "phi3")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(command(str(model), "--port", port), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"Port {port} of 127.0.0.1 cannot be listened on" in done.stderr


def test_an_adapter_and_packed_weights_are_served(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Assistant] = []

    def keep(assistant: Assistant, listening: socket.socket, *rest: object) -> None:
        listening.close()
        served.append(assistant)

    monkeypatch.setattr("llava_tools.serve.run.serve", keep)
    words = ["serve", str(parts / "phi3"), "--port", "0"]
    assert run([*words, "--bits", "4"]) == 0
    kinds = {type(module).__name__ for module in served[0].model.llm.modules()}
    assert "Linear4bit" in kinds
    assert run([*words, "--adapter", str(tmp_path)]) == 2
    assert run([*words, "--bits", "3"]) == 2
