"""`serve` as people run it: a process that says where it is, answers what it has begun, and stops when it is told to."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from nano_qwen3_serving import cli
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.server.command import listed, names_of, serve
from nano_qwen3_serving.testing.loopback import PATIENCE, Wire, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals are sent as on Unix")]

COMMAND = [sys.executable, "-m", "nano_qwen3_serving", "serve"]
LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def announced(self) -> str:
        """The line that says where it is, or nothing yet."""
        return next((line for line in self.lines if " is served at " in line), "")

    @property
    def url(self) -> str:
        """Where it is."""
        found = re.search(r"is served at (\S+);", self.announced)
        assert found
        return found[1]

    def says(self, text: str) -> bool:
        """Whether it has said so, on either stream."""
        return any(text in line for line in self.lines)


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Process]:
    """`serve` with these options, on a port that is free; ended if the test did not end it."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--device", "cpu", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    here = Process(process)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: here.lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        wait_until(lambda: here.announced or process.poll() is not None, "it never began", PATIENCE * 2)
        assert process.poll() is None, "".join(here.lines)
        yield here
    finally:
        process.kill()
        process.wait()
        reader.join(PATIENCE)
        process.stdout.close()


def test_it_says_where_it_is_and_the_line_to_try_works():
    with serving() as here:
        command = here.announced.partition("try: ")[2].strip()
        assert command.startswith(f"curl {here.url}/v1/completions ")
        body = re.search(r"-d '(.*)'$", command)[1]
        answer = httpx.post(f"{here.url}/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60)
        assert "A KV cache stores" in answer.json()["choices"][0]["text"]
        assert httpx.get(f"{here.url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
        here.process.send_signal(signal.SIGINT)
        assert here.process.wait(PATIENCE) == 0
        assert not here.says("Traceback") and not here.says("ERROR"), "".join(here.lines)


def readme_blocks(language: str) -> list[str]:
    """The blocks of the README's section about the server."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Over HTTP")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_readmes_lines_ask_the_server_that_it_starts():
    start, ask = readme_blocks("bash")
    programs = readme_blocks("python")
    (scraped,) = readme_blocks("yaml")
    assert start.split() == ["python", "-m", "nano_qwen3_serving", "serve"]  # where it listens by default: 127.0.0.1:8000
    with serving() as here:
        curl, url, _, header, _, body = shlex.split(ask.replace("\\\n", " "))
        assert curl == "curl" and header == "Content-Type: application/json"
        url = url.replace("http://127.0.0.1:8000", here.url)
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=60)
        text = answer.json()["choices"][0]["message"]["content"]
        assert text.startswith("A KV cache stores")
        (target,) = re.findall(r'targets: \["(.*?)"\]', scraped)
        assert "vllm:prompt_tokens_total" in httpx.get(f"http://{target}/metrics".replace("http://127.0.0.1:8000", here.url)).text
        pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")
        printed = [subprocess.run(
            [sys.executable, "-c", program.replace("http://127.0.0.1:8000", here.url)], capture_output=True, text=True,
            encoding="utf-8", timeout=240, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, check=True).stdout
            for program in programs]
        assert printed == [text, "it calls clock\nIt is 09:41.\n"]


def test_without_flags_it_is_where_the_readme_says():
    parameters = inspect.signature(serve).parameters
    assert (parameters["host"].default, parameters["port"].default) == ("127.0.0.1", 8000)


def test_flags_reach_the_engine_and_the_app():
    with serving("--model", "course-draft", "--served-model-name", "a", "--served-model-name", "b", "--max-model-len", "100",
                 "--block-size", "8", "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--scheduling-policy", "priority",
                 "--dtype", "float32", "--enforce-eager", "--num-gpu-blocks-override", "30", "--stream-interval", "5",
                 "--max-body-bytes", "500", "--allowed-origins", '["https://page.example"]', NANO_QWEN3_API_KEY="secret") as here:
        assert "a is served" in here.announced and "NANO_QWEN3_API_KEY" in here.announced and not here.says("secret")
        assert httpx.get(f"{here.url}/v1/models").status_code == 401
        keyed = httpx.Client(base_url=here.url, headers={"Authorization": "Bearer secret", "Origin": "https://page.example"})
        with keyed:
            models = keyed.get("/v1/models").json()["data"]
            assert [(m["id"], m["max_model_len"], m["root"]) for m in models] == [(n, 100, "course-draft") for n in "ab"]
            assert keyed.get("/stats").json()["num_total_blocks"] == 29
            streamed = keyed.post("/v1/completions", json={**LONG, "max_tokens": 21, "stream": True})
            assert streamed.text.count('"text":') <= 6, "the first token, and then five at a time"
            assert keyed.post("/v1/completions", json={"prompt": "x" * 600}).status_code == 413
            assert keyed.get("/health").headers["access-control-allow-origin"] == "https://page.example"
            with keyed.stream("GET", "/playground/steps") as steps:
                header = next(line for line in steps.iter_lines() if line.startswith("data: "))
            for shown in ('"block_size":8', '"max_num_seqs":4', '"max_num_batched_tokens":64'):
                assert shown in header


def test_the_first_signal_lets_running_requests_finish_and_refuses_new_ones():
    with serving() as here, Wire(here.url) as stream, Wire(here.url) as whole:
        stream.post(stream=True, **LONG)
        whole.post(**LONG)
        stream.head()
        stream.event()
        here.process.send_signal(signal.SIGTERM)
        wait_until(lambda: here.says("no new requests"), "it did not hear the signal")
        for method, path in [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/health")]:
            answer = httpx.request(method, here.url + path, json=LONG if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert answer.headers["retry-after"] and answer.headers["connection"] == "close"
        assert httpx.get(f"{here.url}/stats").json()["draining"] is True
        *_, last, done = stream.events()
        assert done == "[DONE]" and last["choices"][0]["finish_reason"] == "length"
        assert whole.answer()[2]["usage"]["completion_tokens"] == 400
        assert here.process.wait(PATIENCE) == 0


def test_the_second_signal_ends_running_requests_with_an_error():
    with serving() as here, Wire(here.url) as stream, Wire(here.url) as whole:
        stream.post(stream=True, **LONG | {"max_tokens": 1900})
        whole.post(**LONG | {"max_tokens": 1900})
        stream.head()
        stream.event()
        here.process.send_signal(signal.SIGTERM)
        wait_until(lambda: here.says("no new requests"), "it did not hear the signal")
        here.process.send_signal(signal.SIGTERM)
        assert stream.events()[-1]["error"]["code"] == "engine_dead"
        status, _, body = whole.answer()
        assert (status, body["error"]["code"]) == (503, "engine_dead")
        assert here.process.wait(PATIENCE) == 1, "requests were cut off"
        assert not here.says("Traceback"), "".join(here.lines)


@pytest.mark.proof
def test_draining_takes_no_longer_than_it_may_and_a_watcher_does_not_hold_it_up():
    with serving("--drain-timeout", "0.2") as here, Wire(here.url) as stream:
        stream.post(stream=True, **LONG | {"max_tokens": 1900})
        stream.head()
        here.process.send_signal(signal.SIGTERM)
        assert stream.events()[-1]["error"]["code"] == "engine_dead"
        assert here.process.wait(PATIENCE) == 1
    with serving() as here, httpx.stream("GET", f"{here.url}/playground/steps") as watched:
        assert watched.status_code == 200
        here.process.send_signal(signal.SIGTERM)
        assert here.process.wait(PATIENCE) == 0


# -- mistakes --


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """The command, to its end: exit status and all that it said."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=240,
                          env=os.environ | environment, check=False)
    return done.returncode, done.stdout + done.stderr


def test_an_address_that_is_taken_is_one_line_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = run("--port", port)
        assert status == 1 and said.startswith(f"error: cannot serve on 127.0.0.1:{port}") and "--port" in said
        assert said.count("\n") == 1


@pytest.mark.share(1)
@pytest.mark.parametrize("arguments, says", [
    (["--model", "nosuch"], "nosuch"), (["--host", "no.such.host.invalid", "--api-key", "k"], "--host"),
    (["--block-size", "0"], "block_size"), (["--api-key", "two words"], "api_key"),
    (["--request-timeout", "-1"], "request_seconds"), (["--dtype", "float3"], "dtype"),
    (["--allowed-origins", "[1]"], "allowed_origins")])
def test_a_mistake_is_one_line(arguments, says):
    status, said = run("--port", "0", *arguments)
    assert status == 1 and said.startswith("error: ") and says in said and said.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')\n", "utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    status, said = run("--port", "0", PYTHONPATH=path)
    assert status == 1 and said.count("\n") == 1
    assert said.startswith("error: the server needs uvicorn") and "pip install 'nano-qwen3-serving[server]'" in said


HEAVY = {"torch", "numpy", "transformers", "tokenizers", "jinja2", "fastapi", "uvicorn", "prometheus_client", "httpx"}


@pytest.mark.parametrize("command", [[], *([name] for name in typer.main.get_command(cli.app).commands)], ids=str)
def test_asking_for_help_imports_nothing_heavy(command: list[str]):
    code = (f"import sys; sys.argv = ['nano_qwen3_serving', *{command}, '--help']\n"
            "from nano_qwen3_serving.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            f"print('heavy:', *sorted({HEAVY} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=240, check=True,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "200"})
    assert f"nano_qwen3_serving {' '.join(command)}" in done.stdout and done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize("host, key, more, names", [
    ("127.0.0.1", None, [], ["127.0.0.1", "localhost", "127.0.0.1", "::1"]), ("127.0.0.1", "k", [], None),
    ("0.0.0.0", None, [], None), ("0.0.0.0", "k", ["box"], ["box", "0.0.0.0", "localhost", "127.0.0.1", "::1"]),
    ("127.0.0.2", None, ["box"], ["box", "127.0.0.2", "localhost", "127.0.0.1", "::1"])])
def test_a_loopback_server_without_a_key_answers_to_its_own_names_only(host, key, more, names):
    assert names_of(host, key, more) == names


def test_lists_are_given_as_options_or_in_json():
    assert listed("x", None) == [] and listed("x", ["a", "b"]) == ["a", "b"] and listed("x", ['["a", "*"]']) == ["a", "*"]
    with pytest.raises(InvalidParametersError, match="x must be a list of strings"):
        listed("x", ["[a"])
