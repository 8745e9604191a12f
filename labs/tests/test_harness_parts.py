"""`--use`: whose parts an engine is made of, and whose error it is when it stops."""

import re
from pathlib import Path

import pytest

from labs.harness.catalog import LabError
from labs.harness.mixed_engine.blame import blame, earlier
from labs.harness.mixed_engine.parts import Engine, engine_of, read_uses
from labs.harness.regions import make_starter
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.exceptions import EngineError
from nano_qwen3_serving.outputs import RequestOutput

pytestmark = pytest.mark.slow

BLOCKS = '''\
"""A toy lab: the simplest block manager."""


def blocks_for(num_tokens, block_size):
    # TODO 1: how many blocks do the tokens take?
    ### BEGIN SOLUTION
    return -(-num_tokens // block_size)
    ### END SOLUTION


class Pool:
    def __init__(self, num_blocks, block_size):
        self.block_size, self.blocks, self.tables = block_size, list(range(1, num_blocks)), {}

    @property
    def num_free_blocks(self):
        return len(self.blocks)

    def allocate(self, request_id, num_tokens):
        # TODO 2: all that is missing, or nothing
        ### BEGIN SOLUTION
        table = self.tables.get(request_id, [])
        missing = blocks_for(num_tokens, self.block_size) - len(table)
        if missing > len(self.blocks):
            return False
        self.tables[request_id] = table + [self.blocks.pop() for _ in range(missing)]
        return True
        ### END SOLUTION

    def block_table(self, request_id):
        return list(self.tables[request_id])

    def free(self, request_id):
        # TODO 3: give the blocks back
        ### BEGIN SOLUTION
        self.blocks += self.tables.pop(request_id, [])
        ### END SOLUTION

    def waste(self):
        # TODO 4: nothing that the engine calls
        ### BEGIN SOLUTION
        return 0
        ### END SOLUTION
'''

BLOCKS_SEAM = '''\
class Adapter:
    def __init__(self, pool):
        self.pool, self.block_size, self.block_table = pool, pool.block_size, pool.block_table
        self.enable_prefix_caching = False

    @property
    def num_free_blocks(self):
        return self.pool.num_free_blocks

    def find_cached_prefix(self, request_id, token_ids, salt=""):
        return 0

    def allocate(self, request_id, num_tokens, cached_prefix=(), salt=""):
        return self.pool.allocate(request_id, num_tokens)

    def commit(self, request_id, token_ids, start=0):
        pass

    def free(self, request_id):
        self.pool.free(request_id)

    def reset_prefix_cache(self):
        return True

    def check_integrity(self):
        pass


def block_manager(lab, config):
    return Adapter(lab.Pool(config.cache.num_blocks, config.cache.block_size))
'''

SAMPLER = '''\
def pick(logits):
    # TODO 1: the best token of each row
    ### BEGIN SOLUTION
    return logits.argmax(dim=-1).tolist()
    ### END SOLUTION


class Greedy:
    def sample(self, logits, rows):
        # TODO 2: tokens, and no log-probabilities
        ### BEGIN SOLUTION
        return pick(logits), [None] * len(rows)
        ### END SOLUTION
'''

SAMPLER_SEAM = "def sampler(lab, config):\n    return lab.Greedy()\n"

SMALL = {"model": "course-draft", "block_size": 4, "num_gpu_blocks_override": 12, "max_num_batched_tokens": 16,
         "enable_prefix_caching": False, "device": "cpu"}
PROMPTS = ["Once upon a time", "What is a block table?", "Count to five: one,"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROBABLE = SamplingParams(temperature=0, max_tokens=2, logprobs=1)


def add(workshop, name: str, solution: str, seam: str | None) -> Path:
    folder = workshop.add_lab(name, solution)
    if seam is not None:
        (folder / "seam.py").write_text(seam)
    return folder


@pytest.fixture
def home(workshop) -> Path:
    """Labs 06 (blocks) and 04 (sampler) with a seam, 08 that makes the same part as 06, 07 without a seam."""
    add(workshop, "lab04_toy", SAMPLER, SAMPLER_SEAM)
    add(workshop, "lab06_toy", BLOCKS, BLOCKS_SEAM)
    add(workshop, "lab08_toy", BLOCKS, BLOCKS_SEAM)
    workshop.add_lab("lab07_toy")
    return workshop.home


def write(home: Path, lab: str, solution: str, *changes: tuple[str, str], todos: tuple[int, ...] = ()) -> Path:
    """The lab's starter: `solution` with `changes`, the regions of `todos` still to be written."""
    text = solution
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    bare = make_starter(solution, lab[3:5]).splitlines()
    lines = text.splitlines()
    for todo in todos:
        at = next(i for i, line in enumerate(lines) if f"# TODO {todo}:" in line)
        end = next(i for i in range(at, len(lines)) if "END SOLUTION" in lines[i])
        stub = next(line for line in bare if f'raise TodoError("TODO {todo}:' in line)
        lines[at + 1 : end + 1] = [stub]
    (home / lab / "starter.py").write_text("from labs.harness.todo import TodoError\n" + "\n".join(lines) + "\n")
    return home / lab / "starter.py"


def tokens(engine: Engine | None) -> list[list[int]]:
    llm = LLM(components=engine.components if engine else None, check_invariants=True, **SMALL)
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def failure(engine: Engine) -> BaseException:
    """What an engine built from `engine` fails with."""
    with pytest.raises(Exception) as caught:
        tokens(engine)
    return caught.value


def refusal(*uses: str, home: Path, **options) -> str:
    with pytest.raises(LabError) as caught:
        engine_of(uses, home=home, **options)
    return str(caught.value)


# what is asked for


def test_parts_of_several_labs_make_one_engine_that_gives_the_references_tokens(home: Path):
    write(home, "lab06_toy", BLOCKS)
    engine = engine_of(["mine:06", "solution:04"], home=home)
    assert [(part.lab.id, part.impl, part.fields) for part in engine.parts] == [
        ("06", "mine", ("block_manager",)), ("04", "solution", ("sampler",))]
    assert tokens(engine) == tokens(None)
    assert engine.in_words() == [
        "Lab 06, the toy: your starter.py",
        "Lab 04, the toy: our solution.py",
        "reference: scheduler, attention, model, verifier, drafter, detokenizer, tokenizer",
    ]


def test_nothing_asked_for_is_the_reference(home: Path):
    engine = engine_of(["reference:06"], home=home)
    assert engine.parts == () and engine.in_words()[0].startswith("reference: block manager, scheduler, ")


def test_several_labs_stand_behind_one_colon_and_a_path_may_hold_one(home: Path):
    odd = home / "a:b"
    odd.mkdir()
    (odd / "mine.py").write_text(BLOCKS)
    assert [(c.impl, c.lab.id) for c in read_uses(["solution:4, lab06"], home=home)] == [("solution", "04"), ("solution", "06")]
    choice = read_uses(["a:b/mine.py:06"], home=home, folder=home)[0]
    assert choice.file == (odd / "mine.py").resolve()


def test_all_means_every_lab_that_makes_a_part(home: Path):
    (home / "lab08_toy" / "seam.py").unlink()
    assert [choice.lab.id for choice in read_uses(["solution:all"], home=home)] == ["04", "06"]


def test_all_of_mine_means_every_lab_in_which_something_is_written(home: Path):
    (home / "lab08_toy" / "seam.py").unlink()
    assert "you have not written anything yet" in refusal("mine:all", home=home)
    write(home, "lab06_toy", BLOCKS)
    assert [choice.lab.id for choice in read_uses(["mine:all"], home=home)] == ["06"]
    write(home, "lab04_toy", SAMPLER, todos=(2,))
    assert "Lab 04: TODO 2 of starter.py is not written yet. With --base solution" in refusal("mine:all", home=home)
    assert [choice.lab.id for choice in read_uses(["mine:all"], base="solution", home=home)] == ["04", "06"]


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (["mine:06", "solution:06"], "Lab 06 is named twice, as mine and as solution"),
        (["solution:6,06"], "Lab 06 is named twice"),
        (["solution:06", "solution:08"], "Lab 06 and Lab 08 both make the engine's block manager"),
        (["solution:06", "reference:08"], "Lab 06 and Lab 08 both make the engine's block manager"),
        (["solution:07"], "Lab 07 (A toy) makes no part that an engine could be built with"),
        (["solution:07"], "Labs that make one: 04, 06, 08."),
        (["solution:99"], "There is no lab '99'"),
        (["solution"], "--use solution: write whose and which labs"),
        (["06"], "--use 06: write whose and which labs"),
        (["nobody:06"], "nobody is not mine, solution or reference, nor a file or folder"),
    ],
)
def test_what_cannot_be_is_refused_by_name(home: Path, uses: list[str], message: str):
    assert message in refusal(*uses, home=home)


def test_a_seam_without_a_field_of_components_is_refused(home: Path):
    (home / "lab06_toy" / "seam.py").write_text("def blockmanager(lab, config): ...\n")
    assert "lab06_toy/seam.py has no function named as a field of Components: block_manager, " in refusal(
        "solution:06", home=home)


def test_unwritten_todos_are_listed_before_anything_is_loaded(home: Path):
    starter = write(home, "lab06_toy", BLOCKS, ("class Pool", "raise SystemExit\nclass Pool"), todos=(2, 4))
    assert refusal("mine:06", home=home) == (
        f"Lab 06: TODO 2, 4 of {starter.name} are not written yet. "
        "With --base solution our functions stand in for unwritten ones.")


def test_ours_stand_in_for_what_is_not_written_if_asked_for(home: Path):
    write(home, "lab06_toy", BLOCKS, todos=(2, 4))
    engine = engine_of(["mine:06"], base="solution", home=home)
    assert tokens(engine) == tokens(None)
    assert engine.in_words()[0] == "Lab 06, the toy: your starter.py (TODO 2 and 4 are ours)"
    assert refusal("mine:06", home=home, base="starter") == "--base starter: only --base solution exists."


def test_a_refused_import_is_refused_here_too(home: Path):
    write(home, "lab06_toy", BLOCKS, ("class Pool", "from solution import Pool\nclass Pool"))
    assert "starter.py line" in refusal("mine:06", home=home)


# whose error it is


def blamed(home: Path, lab: str, solution: str, *changes: tuple[str, str], use: str = "mine"):
    starter = write(home, lab, solution, *changes)
    engine = engine_of([f"{use}:{lab[3:5]}"], home=home)
    found = blame(failure(engine), engine)
    assert found is not None
    lines = starter.read_text().splitlines()
    return found, lines[found.line - 1].strip() if found.line else ""


def test_an_error_raised_in_a_part_names_lab_todo_function_and_line(home: Path):
    found, line = blamed(home, "lab06_toy", BLOCKS, ("return False", "return request_id.blocks"))
    assert (found.part.lab.id, found.todo, found.function, line) == ("06", 2, "Pool.allocate", "return request_id.blocks")
    assert str(found) == (
        "The engine stopped in Lab 06, TODO 2: Pool.allocate\n"
        "  raised AttributeError: 'str' object has no attribute 'blocks'\n"
        f"  {home}/lab06_toy/starter.py, line {found.line} (your starter.py)\n"
        "  check it: pytest test_lab.py -k todo_2   (in lab06_toy)")


def test_an_error_in_a_helper_belongs_to_the_todo_that_called_it(home: Path):
    helper = "def oops():\n    return [1 / 0 for _ in range(2)]\n\n\nclass Pool"
    found, line = blamed(home, "lab06_toy", BLOCKS, ("class Pool", helper), ("self.blocks += ", "oops(); self.blocks += "))
    assert (found.function, found.todo, line) == ("oops", 3, "return [1 / 0 for _ in range(2)]")


def test_an_error_while_a_batch_runs_is_found_behind_the_errors_of_its_requests(home: Path):
    found, line = blamed(home, "lab04_toy", SAMPLER, ("return logits.argmax(dim=-1).tolist()", "return logits[1, 2, 3]"))
    assert (found.part.lab.id, found.todo, found.function, line) == ("04", 1, "pick", "return logits[1, 2, 3]")


@pytest.mark.parametrize(
    ("lab", "solution", "old", "new", "todo", "function", "what"),
    [
        ("lab06_toy", BLOCKS, "        return True\n", "", 2, "Pool.allocate", "must return True or False, returned None"),
        ("lab06_toy", BLOCKS, "missing > len(self.blocks)", "missing > 1", 2, "Pool.allocate", "more blocks, and "),
        (
            "lab06_toy",
            BLOCKS,
            "return -(-num_tokens // block_size)",
            "return num_tokens // block_size",
            2,
            "Pool.allocate",
            "returned True for ",
        ),
        ("lab06_toy", BLOCKS, "list(self.tables[request_id])", "[0]", 2, "Pool.allocate", "block 0 is not one of 1 to 11"),
        ("lab06_toy", BLOCKS, "return len(self.blocks)", "return None", None, "Pool.num_free_blocks", "must be a whole number"),
        ("lab04_toy", SAMPLER, ".tolist()", "", 2, "Greedy.sample", "must return tokens as a list of ints"),
        ("lab04_toy", SAMPLER, ", [None] * len(rows)", "", 2, "Greedy.sample", "must return two lists"),
        ("lab04_toy", SAMPLER, "[None] * len(rows)", "[{}] * len(rows)", 2, "Greedy.sample", "asked for none log-prob"),
        (
            "lab04_toy",
            SAMPLER,
            "logits.argmax(dim=-1).tolist()",
            "[99999] * len(logits)",
            2,
            "Greedy.sample",
            "returned token 99999",
        ),
    ],
)
def test_an_answer_that_the_engine_cannot_use_is_its_part_s(home: Path, lab, solution, old, new, todo, function, what):
    found, _ = blamed(home, lab, solution, (old, new))
    assert (found.part.lab.id, found.todo, found.function) == (lab[3:5], todo, function)
    assert what in found.what


def test_log_probabilities_without_the_chosen_token_are_the_samplers(home: Path):
    write(home, "lab04_toy", SAMPLER, ("[None] * len(rows)", "[{} for _ in rows]"))
    engine = engine_of(["mine:04"], home=home)
    with pytest.raises(EngineError) as caught:
        LLM(components=engine.components, **SMALL).generate(PROMPTS, PROBABLE, use_tqdm=False)
    assert "the log-probabilities of row 0 lack its own token" in blame(caught.value, engine).what


def test_a_name_that_the_part_lacks_is_its_part_s(home: Path):
    found, _ = blamed(home, "lab06_toy", BLOCKS, ("def free(", "def release("))
    assert found.part.lab.id == "06" and "has no attribute 'free'" in found.what


def test_blocks_that_two_requests_hold_are_the_block_managers(home: Path):
    found, _ = blamed(home, "lab06_toy", BLOCKS, ("self.blocks.pop() for", "self.blocks[0] for"))
    assert found.part.lab.id == "06"
    assert "0 got the blocks [1]: 10 blocks should be free then, and num_free_blocks says 11" in found.what


def test_an_error_of_the_callers_is_nobodys_part(home: Path):
    engine = engine_of(["solution:06"], home=home)
    with pytest.raises(EngineError) as caught:
        LLM("course-draft", components=engine.components, block_size=0)
    assert blame(caught.value, engine) is None


def test_an_error_in_a_stand_in_is_said_to_be_in_ours(home: Path):
    write(home, "lab06_toy", BLOCKS, ("self.blocks, self.tables", "self.blocks, self.table"), todos=(2,))
    engine = engine_of(["mine:06"], base="solution", home=home)
    found = blame(failure(engine), engine)
    assert found.on_ours and found.todo == 2 and "ours, in place of yours" in str(found)
    assert "solution.py" not in str(found), "the line of a file that the learner need not have"


async def test_with_a_failing_part_every_stream_ends(home: Path):
    """Through the asyncio engine: the caller of each request gets an error, none waits."""
    import asyncio

    from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine

    write(home, "lab06_toy", BLOCKS, ("return False", "return 1 / 0"))
    found = engine_of(["mine:06"], home=home)
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**SMALL), components=found.components)

    async def last(i: int) -> RequestOutput | BaseException:
        try:
            return [output async for output in engine.generate(PROMPTS[i], GREEDY, f"r{i}")][-1]
        except EngineError as error:
            return error

    ends = await asyncio.wait_for(asyncio.gather(*map(last, range(3))), timeout=30)
    engine.shutdown()
    errors = [end for end in ends if isinstance(end, BaseException)]
    assert errors and {blame(error, found).todo for error in errors} == {2}


def test_of_two_broken_parts_the_one_that_stopped_the_engine_is_blamed_first(home: Path):
    """The sampler fails for a whole batch, which the engine gets over; then a table is too short."""
    write(home, "lab04_toy", SAMPLER, ("return pick(logits), ", "assert len(rows) == 1, 'only one'; return pick(logits), "))
    write(home, "lab06_toy", BLOCKS, ("return -(-num_tokens // block_size)", "return -(-min(num_tokens, 16) // block_size)"))
    engine = engine_of(["mine:04,06"], home=home)
    error = failure(engine)
    assert blame(error, engine).part.lab.id == "06" and "returned True for 17 tokens" in blame(error, engine).what
    before = earlier(error, engine)
    assert (before.part.lab.id, before.todo, before.what) == ("04", 2, "raised AssertionError: only one")


def test_one_failure_is_not_told_twice(home: Path):
    write(home, "lab06_toy", BLOCKS, ("        return True\n", ""))
    engine = engine_of(["mine:06"], home=home)
    assert earlier(failure(engine), engine) is None


def test_a_lost_block_is_named_with_its_last_owner_and_the_call_that_lost_it(home: Path):
    write(home, "lab06_toy", BLOCKS, (
        "self.blocks += self.tables.pop(request_id, [])", "self.blocks += self.tables.pop(request_id, [])[:-1]"))
    engine = engine_of(["mine:06"], home=home)
    found = blame(failure(engine), engine)
    assert (found.todo, found.function) == (3, "Pool.free")
    assert " was freed, which held the blocks [" in found.what
    assert " blocks should be free then, and num_free_blocks says " in found.what
    assert "(step " in found.what and "check it: pytest test_lab.py -k todo_3" in str(found)


def test_a_block_that_two_requests_got_is_named_with_both(home: Path):
    shared = "[self.blocks.pop() for _ in range(missing)]\n"
    shared += "        others = [table for name, table in self.tables.items() if name != request_id]"
    shared += "\n        self.tables[request_id][-1:] = others[0][-1:] if others else self.tables[request_id][-1:]"
    write(home, "lab06_toy", BLOCKS, ("[self.blocks.pop() for _ in range(missing)]", shared))
    engine = engine_of(["mine:06"], home=home)
    found = blame(failure(engine), engine)
    assert found.todo == 2 and re.search(r"\d got block \d+, which is in the table of \d, too", found.what)


# the commands


def test_generate_streams_and_says_whose_parts_ran(workshop, home: Path):
    write(home, "lab06_toy", BLOCKS)
    run = workshop.labs("generate", "Once upon a time", "--use", "mine:06", "--use", "solution:04",
                        "--model", "course-draft", "--max-tokens", "8")
    assert run.returncode == 0, run.stderr
    text, speed, *whose = run.stdout.strip().split("\n\n")[0], *run.stdout.strip().split("\n\n")[1].splitlines()
    assert text.startswith("Once upon a time") and len(text) > len("Once upon a time")
    assert speed.startswith("8 tokens (length), ") and "tokens/s, the first after " in speed
    assert whose.pop() == "Not what you expected? python -m labs compare --use mine:06 --use solution:04"
    assert whose == ["Lab 06, the toy: your starter.py", "Lab 04, the toy: our solution.py",
                     "reference: scheduler, attention, model, verifier, drafter, detokenizer, tokenizer"]


def test_generate_tells_whose_error_it_is_without_a_traceback(workshop, home: Path):
    write(home, "lab06_toy", BLOCKS, ("        return True\n", ""))
    run = workshop.labs("generate", "Hello", "--use", "mine:06", "--model", "course-draft")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "The engine stopped in Lab 06, TODO 2: Pool.allocate\n  must return True or False, returned None" in run.stderr


def test_a_part_that_is_interrupted_is_named_with_its_line(home: Path):
    """Ctrl-C ends a part that never returns, and says where it was."""
    write(home, "lab06_toy", BLOCKS, ("class Pool", "import signal\n\n\nclass Pool"),
          ("return False", "signal.signal(signal.SIGINT, signal.default_int_handler); signal.raise_signal(signal.SIGINT)"))
    engine = engine_of(["mine:06"], home=home)
    with pytest.raises(KeyboardInterrupt) as caught:
        tokens(engine)
    found = blame(caught.value, engine)
    assert (found.todo, found.what) == (2, "was interrupted")


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "Hello", "--use", "mine:06"], "TODO 1, 2, 3, 4 of starter.py are not written yet"),
        (["generate", "Hello", "--model", "no-such-model-here/x"], "no-such-model-here"),
        (["bench", "--workload", "nonsense"], "there is no workload 'nonsense'"),
        (["compare", "07"], "makes no part"),
    ],
)
def test_a_mistake_in_what_was_asked_for_is_one_line(workshop, home: Path, command: list[str], message: str):
    run = workshop.labs(*command, HF_HUB_OFFLINE="1")
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr


@pytest.mark.proof
def test_bench_shows_both_engines(workshop, home: Path):
    run = workshop.labs("bench", "--use", "solution:06", "--model", "course-draft", "--workload", "quick", "--repeats", "1")
    assert run.returncode == 0, run.stderr
    assert "with your parts" in run.stdout and "output tokens per second" in run.stdout
    assert "Lab 06, the toy: our solution.py" in run.stdout


@pytest.mark.proof
def test_bench_says_on_top_that_tokens_or_blocks_are_wrong_and_ends_with_1(workshop, home: Path):
    options = ["--model", "course-draft", "--workload", "quick", "--repeats", "1"]
    write(home, "lab04_toy", SAMPLER, ("logits.argmax", "logits.argmin"))
    write(home, "lab06_toy", BLOCKS, (
        "self.blocks += self.tables.pop(request_id, [])", "self.blocks += self.tables.pop(request_id, [])[:-1]"))
    wrong = workshop.labs("bench", "--use", "mine:04,06", *options)
    assert wrong.returncode == 1, wrong.stderr
    lines = wrong.stdout.splitlines()
    assert lines[0] == "The same tokens as the reference: NO, from request 0, token 0 on"
    assert "Lab 06, TODO 3: Pool.free" in lines[1]
    assert "Where they first differ: python -m labs compare --use mine:04 --use mine:06" in lines
    right = workshop.labs("bench", "--use", "solution:06", *options)
    assert right.returncode == 0 and right.stdout.startswith("The same tokens as the reference: yes. No block was lost.")
    assert "of the time was spent in your block manager." in right.stdout


NAN = """\
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention


class Mine(TorchPagedAttention):
    calls = 0

    def forward(self, q, layer_cache, metadata):
        # TODO 1: attention
        ### BEGIN SOLUTION
        self.calls += 1
        result = super().forward(q, layer_cache, metadata)
        return result * float("nan") if self.calls > 4 else result
        ### END SOLUTION
"""
NAN_SEAM = """\
def attention(lab, config):
    return lab.Mine(config.model, config.cache.block_size, config.dtype, config.device)
"""


def test_generate_stops_at_the_first_nan_and_says_whose_it_is_and_at_which_token(workshop, home: Path):
    add(workshop, "lab09_toy", NAN, NAN_SEAM)
    run = workshop.labs("generate", "Once upon a time", "--use", "solution:09", "--model", "course-draft", "--max-tokens", "20")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "Token 5 did not come.\nThe engine stopped in Lab 09, TODO 1: Mine.forward" in run.stderr
    assert "returned NaN or infinity, first in row 0 of 1, and got only finite numbers" in run.stderr


@pytest.mark.proof
def test_compare_takes_several_labs_or_says_how_to_name_them(workshop, home: Path):
    both = workshop.labs("compare", "--use", "solution:04,06", "--model", "course-draft")
    assert "Lab 04, the toy: our solution.py\nLab 06, the toy: our solution.py, against the reference." in both.stdout
    none = workshop.labs("compare")
    assert none.returncode == 2 and "compare --use mine:06,07" in none.stderr


@pytest.mark.proof
def test_compare_ends_with_1_if_something_differs(workshop, home: Path):
    write(home, "lab06_toy", BLOCKS)
    same = workshop.labs("compare", "06")
    assert same.returncode == 0 and "Nothing differs: " in same.stdout, same.stdout + same.stderr
    write(
        home,
        "lab06_toy",
        BLOCKS,
        ("self.blocks += self.tables.pop(request_id, [])", "self.blocks += self.tables.pop(request_id, [])[:-1]"),
    )
    other = workshop.labs("compare", "06")
    assert other.returncode == 1 and "First difference, in the blocks: step " in other.stdout
    assert "free blocks: yours " in other.stdout
    write(home, "lab06_toy", BLOCKS, ("return False", "return 1 / 0"))
    failing = workshop.labs("compare", "06")
    assert failing.returncode == 1 and "The engine stopped in Lab 06, TODO 2: Pool.allocate" in failing.stdout


@pytest.mark.proof
def test_report_writes_a_page_with_every_column(workshop, home: Path):
    """On the small course model: what is tested is the page, not the speed."""
    from nano_qwen3_serving.model.checkpoint import find_checkpoint

    write(home, "lab06_toy", BLOCKS)
    for name in ("lab04_toy", "lab08_toy"):
        (home / name / "seam.py").unlink()
    page = home / "pages" / "mine.md"
    run = workshop.labs("report", "--model", str(find_checkpoint("course-draft")), "--out", str(page), "--html")
    assert run.returncode == 0, run.stderr
    text = page.read_text()
    assert text.startswith("# My engine\n\n- Lab 06, the toy: your starter.py\n")
    assert text.count("|  | your engine | reference | naive | ceiling |") == 2
    assert "Less than 4 times the cache" in text or "Choose a --size" in text
    html = page.with_suffix(".html").read_text()
    cells = next(line for line in text.splitlines() if line.startswith("| tokens/s")).split("|")[2:-1]
    assert all(f"<td>{cell.strip()}</td>" in html for cell in cells) and all(float(cell) > 0 for cell in cells)
    assert sorted(path.name for path in page.parent.iterdir()) == ["mine.html", "mine.md"]
