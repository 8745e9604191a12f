"""How the project's own tests are shared out.

Of long tests `make test` takes some cases, others after each commit, and `make prove` takes the rest.

    @pytest.mark.share(2)                      # two of the labs
    @pytest.mark.parametrize("a_lab", LABS)
    def test_the_starter_fails_every_test(a_lab): ...

So what `make test` takes does not grow with the number of cases.
"""

import random
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "share(count): `make test` runs so many of the test's cases, `make prove` the rest")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("share"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for name, several in cases.items():
        count = several[0].get_closest_marker("share").args[0]  # type: ignore[union-attr]
        chosen = random.Random(f"{_commit()}:{name}").sample(range(len(several)), min(count, len(several)))
        for index in set(range(len(several))) - set(chosen):
            several[index].add_marker("proof")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # files with long tests first: at the end no process waits for another


def _commit() -> str:
    """The commit; where there is none, a word."""
    try:
        run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
                             timeout=30, check=False)
    except FileNotFoundError:
        return "none"
    return run.stdout.strip() if run.returncode == 0 else "none"
