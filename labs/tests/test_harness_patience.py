"""A test that waits for ever is ended, and it is known in which line of the learner's it was."""

import asyncio
import signal
import threading
import time
from pathlib import Path

import pytest

from labs.harness.suite.patience import Limit, WaitsForEver

pytestmark = pytest.mark.slow

SOON = 0.3

WAYS = {
    "a loop": ("def f():\n    n = 0\n    while True:\n        n += 1\n", r"in line [34] of starter\.py, in f: "),
    "a loop that calls": ("def f():\n    while True:\n        for n in [1]: g()\n\ndef g(): pass\n", r"of starter\.py, in "),
    "a loop that catches everything": (
        "def f():\n    while True:\n        try:\n            sum(range(100))\n        except Exception:\n            pass\n",
        r"of starter\.py, in f"),
    "a lock": ("import threading\ndef f():\n    threading.Event().wait()\n", r"in line 3 of starter\.py, in f: threading\.Event"),
    "another thread": (
        "import threading\nover = []\ndef f():\n    t = threading.Thread(target=g)\n    t.start()\n    t.join()\n"
        "def g():\n    while not over:\n        pass\n", r"of starter\.py, in "),
}


@pytest.fixture(autouse=True, params=[signal.default_int_handler, signal.SIG_IGN], ids=["", "in the background"])
def ctrl_c_as_it_was(request):
    before = signal.signal(signal.SIGINT, request.param)
    yield
    assert signal.signal(signal.SIGINT, before) is request.param


def load(folder: Path, text: str) -> tuple[dict, Path]:
    file = folder / "starter.py"
    file.write_text(text)
    namespace: dict = {}
    exec(compile(text, str(file), "exec"), namespace)
    return namespace, file


@pytest.mark.share(3)
@pytest.mark.parametrize("way", WAYS)
def test_whatever_does_not_end_is_ended_and_located(way: str, tmp_path: Path):
    text, where = WAYS[way]
    code, file = load(tmp_path, text)
    before = set(threading.enumerate())
    with pytest.raises(WaitsForEver, match=where), Limit(SOON, file):
        code["f"]()
    code.get("over", []).append(True)  # a thread that goes on would slow every test after this one
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


WAITING = {
    "an event": "import asyncio\nasync def f():\n    await asyncio.Event().wait()\n",
    "the next item": "import asyncio\nasync def g():\n    await asyncio.Event().wait()\n    yield 1\n"
                     "async def f():\n    async for _ in g():\n        pass\n",
    "a task": "import asyncio\nasync def g():\n    await asyncio.Event().wait()\n"
              "async def f():\n    await asyncio.create_task(g())\n",
}  # fmt: skip


@pytest.mark.share(1)
@pytest.mark.parametrize("way", WAITING)
def test_a_coroutine_that_waits_is_located_too(way: str, tmp_path: Path):
    code, file = load(tmp_path, WAITING[way])
    with pytest.raises(WaitsForEver, match=r"in line \d of starter\.py, in [fg]: "), Limit(SOON, file):
        asyncio.run(code["f"]())


def test_what_ends_in_time_is_left_alone(tmp_path: Path):
    before = threading.active_count()
    with Limit(60, tmp_path / "starter.py") as limit:
        done = sum(range(1000))
    with Limit(0, None):
        done += 1
    assert done == 499501 and not limit.words and threading.active_count() == before


def test_right_code_that_gets_its_turn_late_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a busy machine a clock says nothing: here the process is said to get a fiftieth of a core."""
    clock = iter(range(10**9))
    monkeypatch.setattr(time, "process_time", lambda: next(clock) * SOON / 4 / 50)
    with Limit(SOON, tmp_path / "starter.py") as limit:
        threading.Event().wait(SOON * 4)
    assert not limit.words


def test_other_errors_and_ctrl_c_come_through(tmp_path: Path):
    with pytest.raises(KeyError), Limit(60, tmp_path / "starter.py"):
        raise KeyError("mine")
    with pytest.raises(KeyboardInterrupt), Limit(60, tmp_path / "starter.py"):
        raise KeyboardInterrupt


def test_nothing_is_raised_after_the_block(tmp_path: Path):
    code, file = load(tmp_path, WAYS["a loop"][0])
    for _ in range(5):
        with pytest.raises(WaitsForEver), Limit(0.05, file):
            code["f"]()
        assert sum(range(200_000)) == 19999900000
