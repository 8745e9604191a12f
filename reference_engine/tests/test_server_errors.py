"""What a server refuses, and how: OpenAI's shape, the field's name, and never a connection without an answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.serving import Limits
from nano_qwen3_serving.testing.doubles import double_components
from nano_qwen3_serving.testing.loopback import Wire, served, wait_until

pytestmark = pytest.mark.slow

ASK = [{"role": "user", "content": "What is a KV cache?"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@contextmanager
def small_server(**options: Any) -> Iterator[str]:
    """A server of a network that takes no time; its URL."""
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course", num_gpu_blocks_override=33, block_size=4, check_invariants=True, max_num_queued_reqs=8),
        components=double_components())
    with served(create_app(engine, **options)) as url:
        yield url
    engine.shutdown()


@pytest.fixture(scope="module")
def url(course_server) -> str:
    return course_server.url


def refusal(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """Checks an answer that is an error, in all that clients look at; its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param) and error["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return error["message"]


# -- fields --

WRONG_IN_BOTH = [
    ({"model": "gpt-7"}, 404, "model_not_found", "model", "'gpt-7'"),
    ({"model": 7}, 400, "invalid_type", "model", "7"),
    ({"temperature": 9}, 400, "invalid_value", "temperature", "9"),
    ({"temperature": "hot"}, 400, "invalid_type", "temperature", "'hot'"),
    ({"top_p": 0}, 400, "invalid_value", "top_p", "0"),
    ({"top_k": 1.5}, 400, "invalid_type", "top_k", "1.5"),
    ({"min_p": 2}, 400, "invalid_value", "min_p", "2"),
    ({"n": 0}, 400, "invalid_value", "n", "0"),
    ({"n": 5000}, 400, "invalid_value", "n", "5000"),
    ({"n": 2, "temperature": 0}, 400, "invalid_value", "n", "2"),
    ({"max_tokens": 0}, 400, "invalid_value", "max_tokens", "0"),
    ({"max_tokens": "5"}, 400, "invalid_type", "max_tokens", "'5'"),
    ({"min_tokens": 9, "max_tokens": 5}, 400, "invalid_value", "min_tokens", "9"),
    ({"stop": [""]}, 400, "invalid_value", "stop", "''"),
    ({"stop": 7}, 400, "invalid_type", "stop", "7"),
    ({"stop_token_ids": [-1]}, 400, "invalid_value", "stop_token_ids", "-1"),
    ({"stop_token_ids": [10**6]}, 400, "invalid_value", "stop_token_ids", "1000000"),
    ({"presence_penalty": 3}, 400, "invalid_value", "presence_penalty", "3"),
    ({"frequency_penalty": -3}, 400, "invalid_value", "frequency_penalty", "-3"),
    ({"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty", "0"),
    ({"seed": True}, 400, "invalid_type", "seed", "True"),
    ({"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias", "'x'"),
    ({"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias[5]", "101"),
    ({"logit_bias": {"999999999": 1}}, 400, "invalid_value", "logit_bias", "999999999"),
    ({"allowed_token_ids": []}, 400, "invalid_value", "allowed_token_ids", "[]"),
    ({"bad_words": [""]}, 400, "invalid_value", "bad_words", "''"),
    ({"response_format": {"type": "xml"}}, 400, "invalid_type", "response_format.type", "'xml'"),
    ({"response_format": {"type": "json_schema"}}, 400, "missing_field", "response_format.json_schema", "json_schema"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, 400, "invalid_value",
     "response_format", "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, 400, "invalid_value", "structured_outputs", "exactly one"),
    ({"structured_outputs": {"yaml": "a"}}, 400, "invalid_value", "yaml", "yaml"),
    ({"stream": "yes"}, 400, "invalid_type", "stream", "'yes'"),
    ({"stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options", "stream=true"),
    ({"stream": True, "stream_options": {"usage": True}}, 400, "unknown_field", "stream_options.usage", "include_usage"),
    ({"priority": "high"}, 400, "invalid_type", "priority", "'high'"),
    ({"cache_salt": 7}, 400, "invalid_type", "cache_salt", "7"),
    ({"metadata": {"a": 1}}, 400, "invalid_type", "metadata.a", "1"),
    ({"temprature": 1}, 400, "unknown_field", "temprature", "'temperature'"),
    ({"best_of": 2}, 400, "unknown_field", "best_of", "best_of"),
]


@pytest.mark.parametrize("route, base", [
    ("/v1/completions", {"prompt": "Hello"}), ("/v1/chat/completions", {"messages": ASK})], ids=["completion", "chat"])
@pytest.mark.parametrize("fields, status, code, param, says", WRONG_IN_BOTH, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named_with_its_value(url, route, base, fields, status, code, param, says):
    answer = httpx.post(url + route, json=base | {"max_tokens": 5} | fields)
    assert says in refusal(answer, status, code, param)


@pytest.mark.parametrize("fields, code, param", [
    ({}, "missing_field", "prompt"), ({"prompt": 7}, "invalid_type", "prompt"), ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"), ({"prompt": [[]]}, "invalid_value", "prompt"),
    ({"prompt": ["a", ""]}, "invalid_value", "prompt"), ({"prompt": ["a", 1]}, "invalid_type", "prompt"),
    ({"prompt": [10**9]}, "invalid_value", "prompt_token_ids"), ({"prompt": ["a"] * 201}, "invalid_value", "prompt"),
    ({"prompt": "a", "logprobs": 21}, "invalid_value", "logprobs"),
    ({"prompt": "a", "logprobs": True}, "invalid_type", "logprobs"), ({"prompt": "a", "suffix": "b"}, "unknown_field", "suffix"),
])
def test_a_completions_own_fields_are_checked(url, fields, code, param):
    refusal(httpx.post(f"{url}/v1/completions", json=fields), 400, code, param)


@pytest.mark.parametrize("fields, code, param", [
    ({"messages": []}, "invalid_value", "messages"), ({"messages": "hi"}, "invalid_type", "messages"),
    ({"messages": [{}]}, "invalid_value", "messages[0]"), ({"messages": [7]}, "invalid_type", "messages[0]"),
    ({"messages": [*ASK, {"role": "boss", "content": "x"}]}, "invalid_value", "messages[1]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "invalid_value", "messages[0].tool_calls[0]"),
    ({"top_logprobs": 3}, "invalid_value", "top_logprobs"), ({"logprobs": 3}, "invalid_type", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
    ({"tools": [{"type": "retrieval"}]}, "invalid_value", "tools[0]"), ({"tools": [7]}, "invalid_type", "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools[0].function.name"),
    ({"tools": [TOOL | {"cache": 1}]}, "invalid_value", "tools[0].cache"),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools[1].function.name"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "invalid_value", "tool_choice"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "invalid_value", "continue_final_message"),
    ({"chat_template_kwargs": {"tokenize": True}}, "invalid_value", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "invalid_value", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"self": 1}}, "invalid_value", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinkin": True}}, "invalid_value", "enable_thinkin"),
    ({"chat_template": "{{ 1 }}"}, "unknown_field", "chat_template"), ({"functions": []}, "unknown_field", "functions"),
    ({"modalities": ["audio"]}, "invalid_type", "modalities[0]"), ({"prompt": "a"}, "unknown_field", "prompt"),
])
def test_a_chats_own_fields_are_checked(url, fields, code, param):
    refusal(httpx.post(f"{url}/v1/chat/completions", json={"messages": ASK} | fields), 400, code, param)


def test_without_llguidance_a_form_and_a_call_that_must_be_are_refused(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for fields, param in [({"response_format": {"type": "json_object"}}, "structured_outputs"),
                          ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice")]:
        message = refusal(httpx.post(f"{url}/v1/chat/completions", json={"messages": ASK} | fields), 400, "invalid_value", param)
        assert "pip install" in message and "llguidance" in message


@pytest.mark.parametrize("route, fields, param", [
    ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": "a", "messages": ASK}, "prompt"),
    ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools"), ("/tokenize", {"messages": [{}]}, "messages[0]"),
    ("/detokenize", {"tokens": [-1]}, "tokens"), ("/detokenize", {"tokens": [2**70]}, "tokens"),
])
def test_tokens_and_texts_are_checked(url, route, fields, param):
    refusal(httpx.post(url + route, json=fields), 400, "invalid_value", param)


def test_tokenize_and_detokenize_are_the_tokenizer(url, course_llm):
    tokenizer = course_llm.get_tokenizer()
    got = httpx.post(f"{url}/tokenize", json={"prompt": "Hello, wörld", "return_token_strs": True}).json()
    assert got["tokens"] == tokenizer.encode("Hello, wörld") and got["count"] == len(got["tokens"]) == len(got["token_strs"])
    assert httpx.post(f"{url}/detokenize", json={"tokens": got["tokens"]}).json() == {"prompt": "Hello, wörld"}
    chat = {"messages": ASK, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    got = httpx.post(f"{url}/tokenize", json=chat).json()
    assert got["tokens"] == tokenizer.apply_chat_template(ASK, tools=[TOOL], enable_thinking=False, tokenize=True)


@pytest.mark.parametrize("route, fields, param", [
    ("/v1/completions", {"prompt": "word " * 3000}, "prompt"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, "messages")])
def test_a_prompt_that_is_too_long_is_told_both_lengths(url, route, fields, param):
    message = refusal(httpx.post(url + route, json=fields), 400, "context_length_exceeded", param)
    assert "2048" in message and " 30" in message


# -- routes, bodies --


def test_unknown_routes_and_methods_have_the_same_shape(url):
    refusal(httpx.get(f"{url}/v1/nothing"), 404, "not_found")
    refusal(httpx.post(f"{url}/v1/nothing", json={}), 404, "not_found")
    answer = httpx.get(f"{url}/v1/completions")
    refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("body", [
    b"", b"{", b"nonsense", b'{"prompt": "a"', b'{"prompt": "\xff"}', b"\xff\xfe\x00", b'"text"', b"[]", b"null", b"7",
    b"[" * 100_000, b'{"prompt": ' * 50_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a",}', b"{'prompt': 'a'}",
], ids=lambda body: repr(body[:20]))
def test_a_body_that_is_no_json_object_is_refused(url, body):
    answer = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    refusal(answer, 400, "invalid_json")


@pytest.mark.parametrize("body, code, param", [
    (b'{"prompt": "\\ud83d"}', "invalid_value", "prompt"), (b'{"\\ud83d": 1}', "unknown_field", "\ud83d"),
    (b'{"prompt": "a", "temperature": NaN}', "invalid_value", "temperature"),
    (b'{"prompt": "a", "temperature": 1e999}', "invalid_value", "temperature"),
    (b'{"prompt": "a", "stop": "\\udc00"}', "invalid_value", "stop"),
    (b'{"prompt": "a", "structured_outputs": {"regex": "\\ud83d"}}', "invalid_value", "structured_outputs.regex"),
])
def test_json_that_python_takes_and_nobody_can_use_is_refused_by_field(url, body, code, param):
    answer = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    refusal(answer, 400, code, param)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_body_of_another_type_is_refused(url, kind):
    answer = httpx.post(f"{url}/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": kind} if kind else {})
    assert "application/json" in refusal(answer, 415, "unsupported_media_type")


# -- bytes --


GOOD = b'{"prompt": "Hello", "max_tokens": 2, "temperature": 0}'


def test_a_connection_is_kept_after_an_error(url):
    with Wire(url) as wire:
        wrong_model = b'{"prompt": "a", "model": "x"}'
        for body, status in [(GOOD, 200), (b"{", 400), (b'{"prompt": 7}', 400), (wrong_model, 404), (GOOD, 200)]:
            wire.send(wire.request(body))
            assert wire.answer()[0] == status
        wire.send(b"GET /nothing HTTP/1.1\r\nHost: " + wire.host.encode() + b"\r\n\r\n" + wire.request(GOOD))
        assert [wire.answer()[0], wire.answer()[0]] == [404, 200]


def test_a_request_may_come_byte_by_byte(url):
    with Wire(url) as wire:
        wire.send(wire.request(GOOD), pace=1)
        status, _, body = wire.answer()
        assert status == 200 and body["usage"]["completion_tokens"] == 2


def test_a_chunked_body_is_read(url):
    with Wire(url) as wire:
        head = wire.request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        wire.send(head + b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in GOOD) + b"0\r\n\r\n")
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("data", [
    b"nonsense\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nToo-Large: " + b"y" * 70_000,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", b"GET / HTTP/1.1\r\n\r\n",
], ids=lambda data: repr(data[:30]))
def test_what_is_no_http_is_answered_once_and_the_connection_closed(url, data):
    with Wire(url) as wire:
        wire.send(data)
        status, headers, body = wire.answer()
        assert (status, headers["connection"], body["error"]["code"]) == (400, "close", "invalid_http")
        assert wire.is_closed()


@pytest.mark.parametrize("cut", [10, 60, 120, -1])
def test_a_request_that_stops_in_its_middle_leaves_nothing(url, course_server, cut):
    with Wire(url) as wire:
        wire.send(wire.request(GOOD)[:cut])
    assert httpx.get(f"{url}/stats").json()["num_requests_running"] == 0


# -- bounds --


def test_a_body_that_is_too_large_is_refused_before_it_has_come():
    with small_server(limits=Limits(body_bytes=1000)) as url, Wire(url) as wire:
        head = wire.request(b"").replace(b"Content-Length: 0", b"Content-Length: 100000000")
        wire.send(head)
        status, headers, body = wire.answer()
        assert (status, headers["connection"], body["error"]["code"]) == (413, "close", "body_too_large")
        assert "1000" in body["error"]["message"]


def test_a_chunked_body_that_is_too_large_is_refused_as_soon_as_it_is():
    with small_server(limits=Limits(body_bytes=1000)) as url, Wire(url) as wire:
        wire.send(wire.request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        wire.send((b"200\r\n" + b"x" * 512 + b"\r\n") * 2)  # 1,024 bytes, and no end
        assert wire.answer()[0] == 413


def test_a_client_that_writes_all_of_a_large_body_reads_why_it_was_refused():
    with small_server(limits=Limits(body_bytes=1000)) as url:
        for content in (b"x" * (8 << 20), (b"x" * 65_536 for _ in range(128))):
            answer = httpx.post(f"{url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
            refusal(answer, 413, "body_too_large")
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a" * 900, "max_tokens": 1}).status_code == 400  # its length


def test_a_body_that_does_not_come_is_not_waited_for():
    with small_server(limits=Limits(patience=0.2)) as url, Wire(url) as wire:
        wire.send(wire.request(GOOD)[:-5])
        status, _, body = wire.answer()
        assert (status, body["error"]["code"]) == (408, "body_timeout")


def test_a_request_that_takes_too_long_is_ended():
    with small_server(limits=Limits(request_seconds=0.001)) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 100, "ignore_eos": True})
        assert "0.001" in refusal(answer, 504, "timeout")


@pytest.mark.parametrize("bounds", [{"body_bytes": 0}, {"patience": 0}, {"request_seconds": -1.0}])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(InvalidParametersError, match=next(iter(bounds))):
        Limits(**bounds)


# -- who may come in --


def test_a_key_opens_every_route_and_only_health_is_open_without():
    with small_server(api_key="secret") as url:
        assert httpx.get(f"{url}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}, {"Authorization": "Basic secret"},
                        {"Authorization": "Bearer secret2"}, {"Authorization": b"Bearer \xff"}):
            for route in ("/v1/models", "/metrics", "/stats", "/version", "/openapi.json", "/nothing"):
                answer = httpx.get(url + route, headers=headers)
                message = refusal(answer, 401, "invalid_api_key")
                assert "secre" not in message and answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer secret"}, {"Authorization": "bearer  secret"}):
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        answer = httpx.post(f"{url}/v1/completions", content=b"x" * (1 << 20))
        refusal(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("key", ["", "two words", "ключ", "a\n"])
def test_a_key_that_no_header_can_carry_is_refused(key, course_server):
    with pytest.raises(InvalidParametersError, match="api_key"):
        create_app(course_server.engine, api_key=key)


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1", 200), ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200),
    ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost@evil.example", 403), ("", 403), ("[::1", 403),
])
def test_a_name_that_is_not_the_servers_is_refused(host, status):
    with small_server(allowed_hosts=["localhost", "127.0.0.1", "::1"]) as url:
        answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
        assert answer.status_code == status
        if status == 403:
            assert "--allowed-hosts" in refusal(answer, 403, "unknown_host")


def test_scripts_of_other_pages_read_nothing_unless_their_origin_is_allowed():
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with small_server() as url:
        answer = httpx.options(f"{url}/v1/completions", headers=asks)
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    with small_server(allowed_origins=["https://page.example"], api_key="k") as url:
        assert httpx.options(f"{url}/v1/completions", headers=asks).headers["access-control-allow-origin"] == asks["Origin"]
        refused = httpx.get(f"{url}/v1/models", headers={"Origin": "https://page.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == asks["Origin"]
        other = httpx.options(f"{url}/v1/completions", headers=asks | {"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_two_apps_in_one_process_know_nothing_of_each_other():
    with small_server(served_model_names=["a", "b"], api_key="k") as one, small_server(served_model_names=["c"]) as two:
        names = {url: {m["id"] for m in httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer k"}).json()["data"]}
                 for url in (one, two)}
        assert names == {one: {"a", "b"}, two: {"c"}}
        httpx.post(f"{two}/v1/completions", json={"prompt": "a", "max_tokens": 3, "model": "c"}).raise_for_status()
        counts = {url: httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer k"}).text for url in (one, two)}
        assert 'vllm:generation_tokens_total{model_name="c"} 3.0' in counts[two]
        assert 'vllm:generation_tokens_total{model_name="a"} 0.0' in counts[one]


# -- connections --


def test_a_connection_too_many_is_refused_until_another_one_ends(course_server):
    with served(create_app(course_server.engine), max_connections=3) as url:
        open_ones = [Wire(url) for _ in range(3)]
        for wire in open_ones:
            wire.send(wire.request(GOOD))
            assert wire.answer()[0] == 200
        with Wire(url) as refused:
            status, headers, body = refused.answer()
            assert (status, body["error"]["code"]) == (503, "too_many_connections") and headers["retry-after"] == "1"
        open_ones.pop().close()
        wait_until(lambda: asks(url) == 200, "the place of a closed connection stays taken")
        for wire in open_ones:
            wire.send(wire.request(GOOD))
            assert wire.answer()[0] == 200, "who was there before goes on"
            wire.close()


def asks(url: str) -> int:
    """The status of one good request on a new connection; 0 if the server closed it before."""
    with Wire(url) as wire, suppress(OSError, IndexError):
        wire.send(wire.request(GOOD))
        return wire.answer()[0]
    return 0
