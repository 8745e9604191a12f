"""The playground shows what the records say, lets no text become HTML, and follows an engine without growing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.live import LiveSteps
from nano_qwen3_serving.server.playground.page import engine_header, playground_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian and Ubuntu: sudo apt install chromium)")

EVIL = "</script><!--<script><img src=x onerror=hit=1>"
BLOCKS = 28
POOL = {"block_size": 4, "num_gpu_blocks_override": BLOCKS, "max_num_batched_tokens": 24, "max_num_seqs": 6}


class Run:
    """A run of the course checkpoint in a pool that is too small: requests wait, share blocks, and are preempted."""

    def __init__(self, llm: LLM) -> None:
        recorder, live = Recorder(), LiveSteps(keep=10_000)
        for observer in (recorder, live):
            llm.llm_engine.observers.add(observer)
        prompts = ["What is a KV cache, and who needs it?"] * 2
        prompts += ["Why does a server batch?", "Count to 9", "Tell me a story"] * 2
        llm.generate(prompts, [SamplingParams(temperature=0.8, seed=i, max_tokens=16 + 5 * i, ignore_eos=True)
                               for i in range(len(prompts))], use_tqdm=False)
        self.recorded, self.steps = recorder.steps, live.steps
        self.header = engine_header(llm.llm_engine.config, "course")


@pytest.fixture(scope="module")
def run(make_llm: Callable[..., LLM]) -> Run:
    """The run of most tests here."""
    return Run(make_llm(**POOL))


@pytest.fixture(scope="module")
def step_records(make_llm: Callable[..., LLM]) -> list[Any]:
    """What an engine tells its observers of the steps of a run, to be told again."""
    told: list[Any] = []
    spy = LiveSteps()
    spy.on_step = told.append  # type: ignore[method-assign]
    llm = make_llm(**POOL)
    llm.llm_engine.observers.add(spy)
    llm.generate(["Tell me a story"] * 3, SamplingParams(temperature=0, max_tokens=25, ignore_eos=True), use_tqdm=False)
    assert len(told) > 20
    return told


# ---------------------------------------------------------------- the page as a file


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.seen and self.seen[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data


def test_the_page_is_one_file_that_refers_to_nothing_outside() -> None:
    page = playground_page()
    for tag, attributes in Elements(page).seen:
        assert tag not in {"iframe", "object", "embed", "base", "form-action"}
        assert not {"src", "srcset", "action", "background"} & attributes.keys(), (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert not re.search(r"https?://|@import|url\(|import\(", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page)


def test_an_embedded_trace_comes_out_as_it_went_in_whatever_is_written_in_it(run: Run) -> None:
    steps = [{**run.recorded[0], "running": [EVIL, "\u2028", "</SCRIPT >", "日本"]}]
    elements = Elements(playground_page(steps, {"model": EVIL}, title=EVIL, start=3))
    assert sum(tag == "script" for tag, _ in elements.seen) == 2
    assert json.loads(elements.scripts[0]) == {"header": {"model": EVIL}, "steps": steps, "title": EVIL, "start": 3}
    assert not any(tag == "img" for tag, _ in elements.seen)


def test_a_page_without_a_trace_has_none_and_one_of_no_steps_has_an_empty_one() -> None:
    assert json.loads(Elements(playground_page()).scripts[0]) is None
    assert json.loads(Elements(playground_page([])).scripts[0])["steps"] == []


def test_its_policy_allows_its_own_style_and_script_and_nothing_else(run: Run) -> None:
    for page in (playground_page(), playground_page(run.steps, run.header)):
        policy = dict(part.split(" ", 1) for part in re.search(r'Policy" content="([^"]*)"', page)[1].split("; "))  # type: ignore[index]
        for tag in ("style", "script"):
            source = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]  # type: ignore[index]
            assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert not re.search(r"<[^>]+ (style|on\w+)=", page.split("<script>")[0]), "the policy would drop it"


def test_the_header_says_what_the_records_do_not(run: Run) -> None:
    assert run.header == {"model": "course", "block_size": 4, "num_blocks": BLOCKS, "max_num_seqs": 6,
                          "max_num_batched_tokens": 24, "max_model_len": (BLOCKS - 1) * 4}


def test_requests_have_the_colours_of_the_pictures() -> None:
    card = pytest.importorskip("nano_qwen3_serving.pictures.card", reason="needs matplotlib: pip install matplotlib")
    colours = re.search(r"const COLOURS = (\[.*?\]);", playground_page())[1]  # type: ignore[index]
    assert tuple(json.loads(colours)) == card.COLOURS


# ---------------------------------------------------------------- the last steps, live


def test_live_records_are_the_recorders_with_the_evictable_blocks(run: Run) -> None:
    assert [{k: v for k, v in step.items() if k != "cached_blocks"} for step in run.steps] == run.recorded
    assert json.loads(json.dumps(run.steps)) == run.steps
    for step in run.steps:  # free_blocks counts them
        assert len(step["cached_blocks"]) <= step["free_blocks"]
    assert any(step["cached_blocks"] for step in run.steps) and any(step["preempted"] for step in run.steps)


def test_only_the_last_steps_are_kept(step_records: list[Any]) -> None:
    live = LiveSteps(keep=7)
    for record in step_records:
        live.on_step(record)
    assert [step["step"] for step in live.steps] == list(range(len(step_records) - 7, len(step_records)))


async def read(live: LiveSteps, count: int) -> list[tuple[str, Any]]:
    """The first `count` events of a new reader: its name, and the step's number or how many were missed."""
    events: list[tuple[str, Any]] = []
    follow = live.follow()
    async for name, data in follow:
        events.append((name, data["step"] if name == "step" else data["missed"]))
        if len(events) == count:
            break
    await follow.aclose()
    return events


async def test_a_reader_begins_with_what_is_kept_and_then_hears_each_step(step_records: list[Any]) -> None:
    live = LiveSteps(keep=5)
    for record in step_records[:8]:
        live.on_step(record)
    reading = asyncio.create_task(read(live, 8))
    for record in step_records[8:10]:
        await asyncio.sleep(0.01)
        live.on_step(record)
    await asyncio.to_thread(live.on_step, step_records[10])
    assert await reading == [("gap", 3), *(("step", n) for n in range(3, 11))][1:]
    assert live.num_readers == 0


async def test_a_slow_reader_is_told_how_many_steps_it_missed(step_records: list[Any]) -> None:
    live = LiveSteps(keep=5)
    follow = live.follow()
    live.on_step(step_records[0])
    assert (await anext(follow))[1]["step"] == 0
    for record in step_records[1:13]:
        live.on_step(record)
    live.close()
    rest = [(name, data["step"] if name == "step" else data["missed"]) async for name, data in follow]
    assert rest == [("gap", 7), *(("step", n) for n in range(8, 13))]
    assert live.num_readers == 0


def test_readers_on_many_threads_and_event_loops_hear_the_same(step_records: list[Any]) -> None:
    live, heard = LiveSteps(keep=len(step_records)), {}

    def reader(name: int) -> None:
        heard[name] = asyncio.run(read(live, len(step_records)))

    threads = [threading.Thread(target=reader, args=[name]) for name in range(6)]
    for thread in threads:
        thread.start()
    for record in step_records:
        live.on_step(record)
    for thread in threads:
        thread.join(timeout=30)
    assert len(heard) == 6
    assert all(events == [("step", n) for n in range(len(step_records))] for events in heard.values())
    assert live.num_readers == 0


async def test_a_cancelled_reader_leaves_nothing_behind(step_records: list[Any]) -> None:
    live, before = LiveSteps(), asyncio.all_tasks()
    readers = [asyncio.create_task(read(live, 10_000)) for _ in range(20)]
    await asyncio.sleep(0)
    live.on_step(step_records[0])
    await asyncio.sleep(0.01)
    assert live.num_readers == 20
    for one in readers:
        one.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for _ in range(3):
        await asyncio.sleep(0)
    assert live.num_readers == 0 and asyncio.all_tasks() == before


async def test_what_was_kept_before_a_pause_can_be_forgotten(step_records: list[Any]) -> None:
    live = LiveSteps()
    live.on_step(step_records[0])
    live.forget()
    live.on_step(step_records[9])
    assert [step["step"] for step in live.steps] == [1] and await read(live, 1) == [("step", 1)]


def test_a_reader_whose_event_loop_is_gone_is_forgotten(step_records: list[Any]) -> None:
    live, loop = LiveSteps(), asyncio.new_event_loop()
    follow = live.follow()
    waiting = loop.create_task(anext(follow))
    loop.run_until_complete(asyncio.sleep(0))
    assert live.num_readers == 1
    loop.close()  # while it waits
    live.on_step(step_records[0])
    assert live.num_readers == 0
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_closing_ends_readers_that_wait_and_those_that_come_later(step_records: list[Any]) -> None:
    live = LiveSteps()
    live.on_step(step_records[0])
    waiting = asyncio.create_task(read(live, 99))
    await asyncio.sleep(0.01)
    live.close()
    assert await asyncio.wait_for(waiting, 10) == [("step", 0)] == await asyncio.wait_for(read(live, 99), 10)


# ---------------------------------------------------------------- in a browser


class Browser:
    """Headless Chromium, spoken to through its debugging pipe.

    Attributes:
        events: what it said without being asked.
    """

    def __init__(self, profile: Path) -> None:
        self._from, their_out = os.pipe()
        their_in, self._to = os.pipe()

        def as_three_and_four() -> None:  # where Chromium looks for the pipe
            source, sink = os.dup(their_in), os.dup(their_out)
            os.dup2(source, 3)
            os.dup2(sink, 4)

        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [str(CHROMIUM), *quiet, "--remote-debugging-pipe", "about:blank"], preexec_fn=as_three_and_four, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        self._unread, self._sent, self.events, self._session = b"", 0, [], {}
        page = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._sent += 1
        os.write(self._to, json.dumps({"id": self._sent, "method": method, "params": params, **self._session}).encode() + b"\0")
        while True:
            while b"\0" not in self._unread:
                read = os.read(self._from, 1 << 16)
                assert read, "Chromium ended"
                self._unread += read
            said, _, self._unread = self._unread.partition(b"\0")
            answer = json.loads(said)
            if answer.get("id") == self._sent:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + 30
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.02)
        return value

    def open(self, address: str, width: int = 1280) -> None:
        """Goes to a page, and waits until its script ran."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && typeof room === 'object'")

    def key(self, name: str, text: str = "", code: int = 0) -> None:
        """Presses a key where the focus is, as a keyboard does."""
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def text(self, element: str) -> str:
        """The text of the element of an id, once what was asked to be drawn is drawn."""
        self.until("!room.wanted")
        return self.js(f"$('{element}').textContent")

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, since the last time."""
        found = [event for event in self.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded") or (
            event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning", "assert"))]
        self.events.clear()
        return found

    def leave(self) -> None:
        """Closes the page, which would go on asking for a server that is gone."""
        self.call("Page.navigate", url="about:blank")

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._from)
        os.close(self._to)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, which has nothing to complain of at the end of a test."""
    chromium.complaints()
    yield chromium
    complaints = chromium.complaints()
    chromium.leave()
    assert not complaints


@pytest.fixture
def play(browser: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """Opens a page with a trace in it."""

    def opened(steps: Sequence[Any], header: dict[str, Any] | None = None, width: int = 1280, **page: Any) -> Browser:
        file = tmp_path / "page.html"
        file.write_text(playground_page(steps, header, **page), encoding="utf-8")
        browser.open(file.as_uri(), width)
        return browser

    return opened


PIXEL = """((column, row) => {
  const {grid} = $("pool"), pen = el("canvas").getContext("2d", {willReadFrequently: true});
  pen.drawImage($("pool"), -column * grid.size, -row * grid.size);
  return "#" + [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(one => one.toString(16).padStart(2, "0")).join("");
})"""
"""The colour of the pool's picture at a place, counted in blocks from the upper left."""


def figure(value: int) -> str:
    """A number as the page writes it."""
    return f"{value:,}"


def expected(steps: Sequence[dict[str, Any]], index: int, num_blocks: int) -> dict[str, str]:
    """What the page must say at a step, reckoned from the records before it and nothing else."""
    tables: dict[str, list[int]] = {}
    for step in steps[: index + 1]:
        tables = {name: table for name, table in tables.items() if name in step["running"] and name not in step["preempted"]}
        tables |= step["block_tables"]
    step = steps[index]
    counts: dict[int, int] = {}
    for table in tables.values():
        for block in table:
            counts[block] = counts.get(block, 0) + 1
    cached = set(step["cached_blocks"]) - set(counts)
    return {
        "running": figure(len(step["running"])), "waiting": figure(len(step["waiting"])),
        "tokens": figure(sum(c["num_tokens"] for c in step["chunks"])), "held": figure(len(counts)),
        "count-shared": figure(sum(count > 1 for count in counts.values())), "count-cached": figure(len(cached)),
        "count-free": figure(num_blocks - 1 - len(counts) - len(cached)),
        "preemptions": figure(sum(len(earlier["preempted"]) for earlier in steps[: index + 1])),
        "place": f"step {step['step']} of {steps[-1]['step']}",
    }


def shown(browser: Browser, names: Sequence[str]) -> dict[str, str]:
    """The texts of elements by their ids."""
    return {name: browser.text(name) for name in names}


def scrub(browser: Browser, index: int) -> None:
    """Moves the scrubber, as a hand does."""
    browser.js(f"$('scrubber').value = {index}; $('scrubber').dispatchEvent(new Event('input', {{bubbles: true}}))")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_numbers_are_the_traces_at_every_step(run: Run, play: Callable[..., Browser]) -> None:
    browser = play(run.steps, run.header)
    interesting = [i for i, step in enumerate(run.steps) if step["preempted"] or step["finished"] or step["waiting"]]
    for index in sorted({0, 1, len(run.steps) - 1, *interesting[::3]}):
        scrub(browser, index)
        want = expected(run.steps, index, BLOCKS)
        assert shown(browser, list(want)) == want, f"step {index}"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_batch_lists_each_chunk_and_who_waits(run: Run, play: Callable[..., Browser]) -> None:
    browser = play(run.steps, run.header)
    index = next(i for i, step in enumerate(run.steps) if step["waiting"] and len(step["chunks"]) > 1)
    scrub(browser, index)
    browser.until("!room.wanted")
    rows = browser.js("[...$('rows').children].map(row => [...row.children].map(cell => cell.textContent))")
    step = run.steps[index]
    for row, chunk in zip(rows, step["chunks"], strict=False):
        first, last = chunk["start"], chunk["start"] + chunk["num_tokens"] - 1
        assert row[0] == row[1] == chunk["request"] and row[3] == str(len(step["block_tables"][chunk["request"]]))
        assert row[2].split(", ")[1] == (f"tokens {first}–{last}" if last > first else f"token {first}")
    assert [row[1] for row in rows[len(step["chunks"]):] if "waits" in row[2]] == step["waiting"]


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_pool_is_painted_in_the_colours_of_those_who_hold_its_blocks(run: Run, play: Callable[..., Browser]) -> None:
    """A pixel near the lower edge of each full block that one request holds."""
    browser = play(run.steps, run.header, start=len(run.steps) // 2)
    browser.until("!room.wanted")
    held = browser.js("""[...room.pool.holders]
      .filter(([, those]) => those.length === 1 && those[0].end >= (those[0].place + 1) * 4)
      .map(([block, [{request}]]) => ({block, columns: $("pool").grid.columns, colour: request.colour}))""")
    assert len(held) > 5
    for one in held:
        row, column = divmod(one["block"], one["columns"])
        assert browser.js(f"{PIXEL}({column} + 0.2, {row} + 0.8)") == one["colour"]


def a_step(number: int, chunks: dict[str, tuple[int, int, list[int]]], running: str, waiting: str = "") -> dict[str, Any]:
    """A record: of each request in the batch the first token, how many, and its blocks."""
    return {
        "step": number, "time": 1.0 + number, "running": list(running), "waiting": list(waiting), "preempted": [], "finished": {},
        "chunks": [{"request": name, "start": start, "num_tokens": count, "samples": True}
                   for name, (start, count, _) in chunks.items()],
        "block_tables": {name: blocks for name, (_, _, blocks) in chunks.items()}, "sampled": {name: [7] for name in chunks},
        "free_blocks": 9, "evictions": 0, "seconds": {"schedule": 0.1, "execute": 0.5, "output": 0.1}}


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_request_that_a_step_leaves_out_keeps_its_blocks_painted_as_high_as_they_are_full(play: Callable[..., Browser]) -> None:
    steps = [a_step(0, {"A": (0, 6, [1, 2])}, "A", "B"), a_step(1, {"B": (0, 4, [3])}, "AB"),
             a_step(2, {"B": (4, 1, [3, 4])}, "B")]
    browser = play(steps, {"num_blocks": 6, "block_size": 4}, start=1)
    assert browser.text("held") == "3" and browser.text("count-free") == "2"
    rows = browser.js("[...$('rows').children].map(row => [...row.children].map(cell => cell.textContent))")
    assert rows == [["B", "B", "prefill, tokens 0–3", "1"], ["A", "A", "nothing", "2"]]
    parts = [[browser.js(f"{PIXEL}({block} + 0.1, {part})") for part in (0.2, 0.8)] for block in (1, 2)]
    assert parts[0][0] == parts[0][1] == parts[1][1] != parts[1][0], "A's first block is full, its second half full"
    scrub(browser, 2)
    assert browser.text("held") == "2" and "decode, token 4" in browser.text("rows")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_preemptions_are_listed_and_lead_to_their_step(run: Run, play: Callable[..., Browser]) -> None:
    browser = play(run.steps, run.header)
    lost = [(step["step"], name) for step in run.steps for name in step["preempted"]]
    listed = browser.js("[...$('events').children].map(line => [line.children[0].textContent, line.children[1].textContent])")
    assert listed == [[f"step {number}", name] for number, name in reversed(lost)]
    browser.js("$('events').lastChild.firstChild.click()")
    assert browser.text("place").startswith(f"step {lost[0][0]} of")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_every_control_is_reached_and_worked_by_keyboard_and_its_focus_is_seen(run: Run, play: Callable[..., Browser]) -> None:
    browser = play(run.steps, run.header, start=10)
    reached = []
    for _ in range(40):
        browser.key("Tab", code=9)
        focus = browser.js("({id: document.activeElement.id, seen: getComputedStyle(document.activeElement).outlineStyle})")
        if focus["id"]:
            assert focus["seen"] != "none", f"the focus on {focus['id']} cannot be seen"
            reached.append(focus["id"])
    controls = ["open", "previous", "play", "next", "scrubber", "speed"]
    assert [name for name in dict.fromkeys(reached) if name in controls] == controls and "events-log" in reached
    browser.js("$('scrubber').focus()")
    browser.key("ArrowRight", code=39)
    assert browser.text("place").startswith("step 11 of")
    browser.js("$('next').focus()")
    browser.key("Enter", "\r", 13)
    assert browser.text("place").startswith("step 12 of")
    browser.key("ArrowLeft", code=37)
    browser.js("$('previous').focus()")
    browser.key(" ", " ", 32)
    assert browser.text("place").startswith("step 10 of")
    browser.until("$('said').textContent.startsWith('Step 10:')")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_playing_goes_to_the_end_and_stops_there_and_a_pause_stays(run: Run, play: Callable[..., Browser]) -> None:
    browser = play(run.steps, run.header, start=len(run.steps) - 12)
    browser.js("$('speed').value = '120'; $('play').click()")
    browser.until(f"room.shown === {len(run.steps) - 1} && !room.playing")
    assert browser.js("$('play').getAttribute('aria-label')") == "Play"
    browser.js("$('speed').value = '1'; $('play').click(); $('play').click()")
    assert browser.js("!room.playing && room.shown < 3")


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("header", [None, {"num_blocks": BLOCKS}])
def test_a_trace_without_a_header_or_without_steps_is_played_as_far_as_it_says(
    run: Run, play: Callable[..., Browser], header: dict[str, Any] | None
) -> None:
    browser = play(run.recorded, header)
    scrub(browser, len(run.recorded) - 1)
    assert browser.text("pool-size") == f"of {BLOCKS - 1}" and browser.text("free-name") == "free or cached"
    browser = play([], header)
    assert browser.text("running") == "0" and browser.text("place") == "no step yet"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_nothing_in_a_trace_becomes_html(run: Run, play: Callable[..., Browser]) -> None:
    names = {"0": EVIL, "1": "__proto__", "2": "\u202eright to left", "3": "x" * 5000}
    text = json.dumps(run.steps)
    for old, new in names.items():
        text = text.replace(f'"{old}"', json.dumps(new))
    browser = play(json.loads(text), {**run.header, "model": EVIL}, title=EVIL)
    scrub(browser, 5)
    assert EVIL in browser.text("rows") and browser.text("model") == f"{EVIL} · {EVIL}"
    assert "__proto__" in browser.text("rows")
    assert browser.js("typeof hit") == "undefined" and browser.js("document.querySelectorAll('img, main script').length") == 0


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_five_hundred_requests_with_long_names_in_four_thousand_blocks_fit(play: Callable[..., Browser], width: int) -> None:
    names = [f"chatcmpl-{i:064d}" for i in range(500)]
    tables = {name: [1 + 10 * i + k for k in range(10)] for i, name in enumerate(names[:390])}
    chunks = [{"request": name, "start": 150, "num_tokens": 1, "samples": True} for name in tables]
    step = {"step": 1_234_567, "time": 9.0, "chunks": chunks, "block_tables": tables, "running": names[:390],
            "waiting": names[390:], "preempted": [], "sampled": {name: [7] for name in tables}, "finished": {}, "free_blocks": 99,
            "evictions": 123_456, "seconds": {"schedule": 0.1, "execute": 0.1, "output": 0.1}}
    header = {"num_blocks": 4000, "block_size": 16, "max_num_batched_tokens": 8192}
    browser = play([step], header, width, title="A long title " * 30)
    browser.until("!room.wanted")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("$('rows').children.length") == 60 and browser.text("others") == "and 440 more"
    cut = browser.js("[...document.querySelectorAll('.figures dd, .figures dt, h2, h3, output, button')].filter("
                     "one => one.offsetParent && one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)")
    assert cut == []


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("content, says", [
    ("{}", "has no step, time"), ("not json", "Line 1 is no JSON: not json"), ("", "There is no step in it"),
    ("[null]", "Entry 0"),
])
def test_a_file_that_is_no_trace_is_refused_by_line(run: Run, play: Callable[..., Browser], content: str, says: str) -> None:
    browser = play(run.steps, run.header)
    browser.js(f"openFile(new File([{json.dumps(content)}], 'a.jsonl'))")
    assert says in browser.until("$('trouble').textContent")
    assert browser.text("place") == f"step 0 of {len(run.steps) - 1}", "the trace that was there is still played"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_file_of_lines_is_played_with_a_header_in_its_first_line_or_without(run: Run, play: Callable[..., Browser]) -> None:
    browser = play([])
    lines = "\n".join(json.dumps(step) for step in run.recorded)
    for text in (lines, json.dumps(run.header) + "\n" + lines + "\n"):
        browser.js(f"openFile(new File([{json.dumps(text)}], 'run.jsonl'))")
        browser.until(f"room.history.steps.length === {len(run.recorded)} && $('model').textContent.startsWith('run.jsonl')")
    assert browser.text("budget-size") == "of 24"


CONTRASTS = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(one => linear(one / 255))
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => { for (let at = node; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour; } return [255, 255, 255]; };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.offsetParent || node.closest("script, :disabled")) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    found.push([walk.currentNode.textContent.trim().slice(0, 40), (one + 0.05) / (other + 0.05)]);
  }
  return found; })()"""
"""The contrast of each text that is seen with what lies under it, as WCAG reckons it."""


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_on_what_lies_under_it(run: Run, browser: Browser, server: Scripted, scheme: str) -> None:
    server.chunks = [said(reasoning_content="hm"), said(content="A `word` and\n```\ncode\n```"), {"error": {"message": "wrong"}}]
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(server.address)
    browser.js("$('more').open = true; chats[0].send('Hello')")
    browser.until("room.history.steps.length === 30")
    browser.text("place")
    contrasts = browser.js(CONTRASTS)
    ground = browser.js("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert brightness > 220 if scheme == "light" else brightness < 60
    weak = [(text, round(value, 1)) for text, value in contrasts if value < 4.5]
    assert len(contrasts) > 60 and not weak


# ---------------------------------------------------------------- chats, against a server that says what a test needs


class Scripted(ThreadingHTTPServer):
    """A server of the playground whose answers are written down.

    Attributes:
        chunks: what a chat answers, one event each.
        steps: what the stream of steps begins with.
        key: what callers must send.
        asked: the bodies of chats.
        gone: set when a client closes the connection of a chat that goes on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chunks: list[Any] = []
        self.steps: list[tuple[str, Any]] = []
        self.key, self.endless = "", False
        self.asked: list[dict[str, Any]] = []
        self.gone, self.over = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """The four routes that the page knows."""

    server: Scripted

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def begin(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def refused(self) -> bool:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.begin(401, "application/json")
            self.wfile.write(json.dumps({"error": {"message": "this server needs a key"}}).encode())
            return True
        return False

    def event(self, name: str, data: Any) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def do_GET(self) -> None:
        if self.path == "/":
            self.begin(200, "text/html; charset=utf-8")
            self.wfile.write(playground_page().encode())
        elif not self.refused():
            self.begin(200, "text/event-stream" if "steps" in self.path else "application/json")
            if self.path == "/v1/models":
                self.wfile.write(json.dumps({"data": [{"id": "course"}]}).encode())
                return
            for name, data in self.server.steps:
                self.event(name, data)
            self.server.over.wait()

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.refused():
            return
        self.begin(200, "text/event-stream")
        for chunk in self.server.chunks:
            self.event("message", chunk)
        try:
            while self.server.endless and not self.server.over.wait(0.02):
                self.event("message", said(content="word "))
        except OSError:
            self.server.gone.set()
        else:
            self.wfile.write(b"data: [DONE]\n\n")


def said(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of an answer."""
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@pytest.fixture
def server(run: Run, chromium: Browser) -> Iterator[Scripted]:
    """A scripted server, with the engine of the run."""
    with Scripted() as scripted:
        scripted.steps = [("engine", run.header), *(("step", step) for step in run.steps[:30])]
        yield scripted
        chromium.leave()
        scripted.over.set()
        scripted.shutdown()


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_an_answer_is_shown_as_text_with_reasoning_and_tool_calls_apart(browser: Browser, server: Scripted) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": f"look<b>{EVIL}", "arguments": '{"city": '}}
    server.chunks = [
        said(role="assistant", reasoning_content=f"hm {EVIL}"),
        said(content=f"A **bold {EVIL}** and `code {EVIL}`\n\n- one {EVIL}\n"),
        said(content=f"- two\n\n1. first\n\n```py\n{EVIL}\nprint()\n```\n<img src=x onerror=hit=1> [a](javascript:hit=1)"),
        said(tool_calls=[call]),
        said("tool_calls", tool_calls=[{"index": 0, "function": {"arguments": f'"{EVIL}"}}'}}]),
        {"id": "chatcmpl-1", "choices": [], "usage": {"completion_tokens": 9}}]
    browser.open(server.address)
    browser.js(f"$('prompt').value = {json.dumps(EVIL)}; $('send').click()")
    browser.until("chats[0].node.querySelector('.foot').textContent.includes('9 tokens')")
    places = {"mine": ".mine", "thought": ".thinking p", "bold": ".text strong", "code": ".text p code", "items": ".text ul li",
              "first": ".text ol li", "block": ".text pre", "tool": ".tool strong", "json": ".tool pre",
              "last": ".text > p:last-child"}
    parts = {name: browser.js(f"[...chats[0].log.querySelectorAll('{place}')].map(one => one.textContent)")
             for name, place in places.items()}
    assert parts == {
        "mine": [EVIL], "thought": [f"hm {EVIL}"], "bold": [f"bold {EVIL}"], "code": [f"code {EVIL}"],
        "items": [f"one {EVIL}", "two"], "first": ["first"], "block": [f"{EVIL}\nprint()"], "tool": [f"look<b>{EVIL}"],
        "json": [json.dumps({"city": EVIL}, indent=2)], "last": ["<img src=x onerror=hit=1> [a](javascript:hit=1)"]}
    assert browser.js("typeof hit") == "undefined"
    assert browser.js("document.querySelectorAll('img, main script, main a').length") == 0
    assert server.asked[0]["messages"] == [{"role": "user", "content": EVIL}] and server.asked[0]["stream"] is True


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_settings_are_sent_and_a_conversation_is_sent_whole_to_every_chat(browser: Browser, server: Scripted) -> None:
    server.chunks = [said(content="Yes."), said("stop")]
    browser.open(server.address)
    for field, value in {"system": "Be short", "temperature": "0.5", "max_tokens": "7", "top_p": "0.9"}.items():
        browser.js(f"$('{field}').value = '{value}'")
    for text in ("One?", "Two?"):
        browser.js(f"$('prompt').value = '{text}'; $('send-all').click()")
        browser.until("chats.every(chat => !chat.running)")
    assert len(server.asked) == 4
    for body in server.asked:
        assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.5, 0.9, 7, "course")
    conversation = [("system", "Be short"), ("user", "One?"), ("assistant", "Yes."), ("user", "Two?")]
    assert [[(m["role"], m["content"]) for m in body["messages"]] for body in server.asked[2:]] == [conversation] * 2
    assert browser.js("$('answers').textContent").count("Yes.") == 2, "the chosen chat is read aloud, the other is not"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_stop_closes_the_connection_and_keeps_what_was_said(browser: Browser, server: Scripted) -> None:
    server.endless = True
    browser.open(server.address)
    browser.js("void chats[1].send('Go on')")
    browser.until("chats[1].log.textContent.includes('word word')")
    browser.js("chats[1].stopButton.click()")
    assert server.gone.wait(20)
    browser.until("!chats[1].running && chats[1].log.textContent.includes('stopped')")
    assert browser.js("chats[1].messages.at(-1).content").startswith("word ")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_server_with_a_key_is_asked_again_with_the_key(chromium: Browser, server: Scripted) -> None:
    server.key, server.chunks = "s3cret", [said("stop", content="Yes.")]
    chromium.open(server.address)
    chromium.until("!$('key-field').hidden && document.activeElement === $('key')")
    chromium.js("$('key').value = 's3cret'; $('key').dispatchEvent(new Event('change'))")
    chromium.until("room.history.steps.length === 30 && $('state').textContent.startsWith('live')")
    chromium.js("chats[0].send('Hello')")
    chromium.until("chats[0].log.textContent.includes('Yes.')")
    assert all("401" in json.dumps(one) for one in chromium.complaints())
    assert "s3cret" not in chromium.js("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_an_error_of_the_server_is_told_in_the_chat(browser: Browser, server: Scripted) -> None:
    server.chunks = [said(content="So "), {"error": {"message": f"the pool is full {EVIL}"}}]
    browser.open(server.address)
    browser.js("chats[0].send('Hello')")
    assert browser.until("chats[0].log.querySelector('.wrong')?.textContent") == f"the pool is full {EVIL}"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_live_steps_are_followed_gaps_are_told_and_the_page_keeps_a_bounded_number(
    run: Run, browser: Browser, server: Scripted
) -> None:
    many = [{**run.steps[-1], "step": 1000 + i, "time": run.steps[-1]["time"] + i} for i in range(700)]
    told = [("step", step) for step in many]
    server.steps = [("engine", run.header), *told[:690], ("gap", {"missed": 4}), *told[690:]]
    browser.open(server.address)
    browser.until("room.history.total === 700")
    assert browser.js("room.history.steps.length") == 600 and browser.text("place") == "step 1,699 of 1,699"
    assert browser.js("[...$('events').children].map(line => line.textContent)") == [
        "step 1,6904 steps missed: this page was too slow"]
    browser.js("$('previous').click()")
    assert browser.text("place") == "step 1,698 of 1,699" and browser.text("state") == "live, paused"
    browser.js("$('follow').click()")
    assert browser.text("place") == "step 1,699 of 1,699"


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_result_of_a_tool_goes_back_and_the_chat_goes_on(browser: Browser, server: Scripted) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}
    server.chunks = [said("tool_calls", tool_calls=[call])]
    browser.open(server.address)
    browser.js("$('tools').value = '[{\"type\": \"function\", \"function\": {\"name\": \"look\"}}]'")
    browser.js("chats[0].send('Look')")
    server.chunks = [said("stop", content="A cat.")]
    browser.js("chats[0].log.querySelector('.tool input').value = 'cat'; chats[0].log.querySelector('.tool button').click()")
    browser.until("chats[0].log.textContent.includes('A cat.')")
    assert server.asked[0]["tools"] == [{"type": "function", "function": {"name": "look"}}]
    called = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "Look"}, {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cat"}]


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_tools_that_are_no_json_are_not_sent(browser: Browser, server: Scripted) -> None:
    browser.open(server.address)
    for text, says in (("[", "The tools are no JSON"), ("{}", "The tools must be a JSON list")):
        browser.js(f"$('tools').value = '{text}'; $('prompt').value = 'Hello'; $('send').click()")
        assert says in browser.until("$('trouble').textContent")
    assert not server.asked and browser.js("$('prompt').value") == "Hello"


# ---------------------------------------------------------------- beside a real engine


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[AsyncLLMEngine, str]]:
    """An engine of the course checkpoint with a small pool, and where its server is."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(
        model="course", device="cpu", dtype="float32", num_gpu_blocks_override=48, block_size=16, max_num_seqs=16))
    server = uvicorn.Server(uvicorn.Config(create_app(engine), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
    engine.shutdown()


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_chats_share_the_batches_that_the_engine_room_shows(served: tuple[AsyncLLMEngine, str], browser: Browser) -> None:
    """The tokens of each answer are those that the steps sampled for its request."""
    browser.open(served[1])
    browser.until("room.live")
    browser.js("$('temperature').value = '0'; $('prompt').value = 'Tell me a story'; $('send-all').click()")
    browser.until("chats.every(chat => !chat.running && chat.log.querySelector('.foot .chip'))")
    for chat in (0, 1):
        name = browser.js(f"chats[{chat}].log.querySelector('.foot .chip').title")
        sampled = browser.js(f"room.history.steps.flatMap(step => step.record.sampled['{name}'] || []).length")
        assert sampled > 10 and f"{sampled} tokens" in browser.js(f"chats[{chat}].log.querySelector('.foot').textContent")
    assert browser.js("room.history.steps.filter(step => step.chunks.length === 2).length") > 5
    assert browser.js("chats[0].log.querySelector('.text').textContent === chats[1].log.querySelector('.text').textContent")


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_filling_the_pool_leads_to_a_preemption_and_can_be_stopped(served: tuple[AsyncLLMEngine, str], browser: Browser) -> None:
    engine, address = served
    browser.open(address)
    browser.until("room.live")
    browser.js("$('fill').click()")
    browser.until("$('preemptions').textContent !== '0' && $('events').children.length > 0")
    assert browser.text("trouble") == ""
    browser.js("$('fill').click()")
    browser.until("!filler.running && $('fill').textContent === 'Fill the pool'")
    end = time.monotonic() + 30
    while asyncio.run(engine.get_stats())["num_requests_running"]:
        assert time.monotonic() < end, "requests of a closed connection still run"
        time.sleep(0.02)
