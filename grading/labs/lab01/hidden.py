"""What only the judge asks of Lab 01."""

import random
import re
from collections.abc import Callable
from typing import Any

from grading.judge.suite import hidden
from labs.harness import loading
from labs.harness.catalog import find_lab
from labs.harness.scripted_engine.engines import scripted_llm
from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import tokenizer, words
from labs.harness.suite.expecting import Here, shown


def script_of(salt: int) -> Callable[[list[int], dict[str, Any]], list[int]]:
    """Answers that depend on the prompt and, where tokens are drawn, on which of the seeds came, and on nothing else."""
    seeds: list[int | None] = []

    def script(prompt: list[int], params: dict[str, Any]) -> list[int]:
        drawn = params["temperature"] > 0 and params["top_k"] != 1
        seed = params["seed"] if drawn else None
        if seed not in seeds:
            seeds.append(seed)
        rng = random.Random(f"{salt} {prompt} {seeds.index(seed)}")
        return tokenizer().encode(f" {words(rng, rng.randrange(5, 9))}. {words(rng, rng.randrange(4, 9))}, {words(rng, 3)}.")

    return script


def printed_here(salt: int) -> str:
    """What our program prints if the model says what the script says."""
    script, lines = script_of(salt), list[str]()
    program: Any = loading.run_file(find_lab("01").solution, "_lab01_solution_of_the_judge")
    program.load_llm = lambda: scripted_llm(Here(), Ledger(random.Random(0), script))
    program.print = lambda *values: lines.append(" ".join(map(str, values)))
    program.main()
    return "\n".join(lines)


def without_times(text: str) -> list[str]:
    """Its lines, every time and speed as a sign, spaces in a row as one."""
    return [" ".join(re.sub(r"\d+\.\d+", "#", line).split()) for line in text.strip().splitlines()]


@hidden("test_todo_5_the_whole_program_loads_once_and_prints_what_the_readme_shows",
        concept="the whole program with another model")
def test_todo_5_the_whole_program_prints_what_another_model_says(lab: Any, rng: random.Random, there: Here) -> None:
    salt = rng.randrange(10**9)
    script = script_of(salt)
    there.put(lab, "load_llm", lambda: scripted_llm(there, Ledger(rng, script)))
    printed, expected = without_times(there.printed(lab.main)), without_times(printed_here(salt))
    for place, line in enumerate(expected):
        mine = printed[place] if place < len(printed) else "nothing"
        assert mine == line, (
            f"README.md, Expected Output, shows how main() prints. With this model, whose words are not the course model's, "
            f"line {place + 1} should be {line!r} (times as #), and it is {mine!r}")
    more = printed[len(expected):]
    assert not more, f"main() should print {len(expected)} lines, and it printed {len(printed)}; the next is {shown(more[0])}"
