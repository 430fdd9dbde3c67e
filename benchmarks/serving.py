"""The server against plain `generate` of transformers: first token, tokens a second, memory.

    python benchmarks/serving.py            # a random Llama of 60M parameters
    python benchmarks/serving.py --tiny     # a toy model: shows that it runs

The plain side calls the LLM's own `generate` in this process, one prompt after the other, as a
server without batching would. Ours is asked over HTTP by the official `openai` client, streamed.
Both decode greedily and say the same number of tokens. Rounds alternate; medians are printed as
JSON, with the resident memory after each hundred of the last requests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TextIteratorStreamer

sys.path.insert(0, str(Path(__file__).parent.parent))

from llava_tools.chat.engine import Engine
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.data.templates import get_template
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import Assistant, load_tokenizer
from llava_tools.serve.api import ServeSettings, create_app
from llava_tools.serve.run import Place, listen, make_server
from tests import tiny

USERS = 8


@dataclass(frozen=True)
class Load:
    """What is asked of which model."""

    hidden: int = 768
    layers: int = 8
    prompt_words: int = 100
    new_tokens: int = 48
    rounds: int = 5
    requests: int = 1000  # of one token each, for the memory


TOY = Load(hidden=64, layers=2, prompt_words=10, new_tokens=6, rounds=1, requests=20)


def build(root: Path, load: Load) -> Assistant:
    """Return a text model with random weights."""
    vocabulary = tiny.save_tokenizer(root, "llama3")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=load.hidden, intermediate_size=3 * load.hidden, num_hidden_layers=load.layers,
        num_attention_heads=load.hidden // 32, num_key_value_heads=load.hidden // 32,
        vocab_size=vocabulary, max_position_embeddings=4096, initializer_range=0.1,
    )  # fmt: skip
    model = LlavaModel(LlamaForCausalLM(config)).eval()
    template = get_template("llama3_chat")
    return Assistant(model, load_tokenizer(root), None, template, True, root, "random")


@contextmanager
def server(assistant: Assistant) -> Iterator[openai.OpenAI]:
    """Serve on a free port; yield a client."""
    engine = Engine(assistant, max_rows=USERS)
    listening = listen(Place(port=0))
    app = create_app(engine, ServeSettings(name="bench"))
    running = make_server(app, log_level="error")
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    running.should_exit = True
    thread.join()
    engine.close()


def question(load: Load, number: int) -> str:
    return " ".join(["word", str(number), *["one two three four"] * (load.prompt_words // 4)])


def plain(assistant: Assistant, load: Load, users: int) -> tuple[float, float]:
    """Return (seconds to the first token of the first user, tokens a second of all)."""
    first, said, began = 0.0, 0, time.perf_counter()
    for user in range(users):
        turns = [Turn("user", question(load, user))]
        ids = torch.tensor([render_prompt(turns, assistant.template, assistant.tokenizer)])
        streamer = TextIteratorStreamer(assistant.tokenizer, skip_prompt=True)
        options = dict(
            input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer, do_sample=False,
            max_new_tokens=load.new_tokens, min_new_tokens=load.new_tokens, pad_token_id=0,
        )  # fmt: skip
        thread = threading.Thread(target=assistant.model.llm.generate, kwargs=options)
        thread.start()
        next(iter(streamer))
        first = first or time.perf_counter() - began
        thread.join()
        said += load.new_tokens
    return first, said / (time.perf_counter() - began)


def ours(client: openai.OpenAI, load: Load, users: int) -> tuple[float, float]:
    """Return the same of the server, all users asking at once."""

    def ask(user: int) -> tuple[float, int]:
        began = time.perf_counter()
        stream = client.chat.completions.create(
            model="bench",
            messages=[{"role": "user", "content": question(load, user)}],
            max_tokens=load.new_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        first, tokens = 0.0, 0
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - began
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return first, tokens

    began = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        found = list(pool.map(ask, range(users)))
    seconds = time.perf_counter() - began
    return found[0][0], sum(tokens for _, tokens in found) / seconds


def resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def memory(client: openai.OpenAI, load: Load) -> list[int]:
    """Return the resident MiB after each tenth of many requests of other lengths."""

    def ask(number: int) -> None:
        content = "word " * (1 + number % 50)
        client.chat.completions.create(
            model="bench",
            messages=[{"role": "user", "content": content}],
            max_tokens=1 + number % 3,
        )

    found = []
    with ThreadPoolExecutor(USERS) as pool:
        for start in range(0, load.requests, max(1, load.requests // 10)):
            list(pool.map(ask, range(start, start + load.requests // 10)))
            found.append(resident_mib())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    load = TOY if parser.parse_args().tiny else Load()
    record: dict[str, object] = {"benchmark": "serving", "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        assistant = build(Path(folder), load)
        with server(assistant) as client:
            ours(client, load, 1)
            for users in (1, USERS):
                rounds = [
                    (plain(assistant, load, users), ours(client, load, users))
                    for _ in range(load.rounds)
                ]
                record[f"{users} user(s)"] = summary(rounds)
            record["resident_mib"] = memory(client, load)
    print(json.dumps(record))


def summary(rounds: list[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, float]:
    """Return the medians of both sides and their ratios."""
    first = [statistics.median(side[0] for side in sides) for sides in zip(*rounds, strict=True)]
    rate = [statistics.median(side[1] for side in sides) for sides in zip(*rounds, strict=True)]
    return {
        "first_token_plain_s": round(first[0], 4),
        "first_token_server_s": round(first[1], 4),
        "tokens_per_second_plain": round(rate[0], 1),
        "tokens_per_second_server": round(rate[1], 1),
        "times_as_fast": round(rate[1] / rate[0], 3),
    }


if __name__ == "__main__":
    main()
