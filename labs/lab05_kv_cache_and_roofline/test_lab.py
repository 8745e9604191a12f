"""Lab 05's one suite. Caches are judged by tokens and by counts, measurements by their method, never by speed.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import re
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from labs.harness.todo import TodoError
from labs.lab05_kv_cache_and_roofline.machine import CacheSize
from labs.lab05_kv_cache_and_roofline.network import Network, threads
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint

TEXTS = ["What is a KV cache?", "Why does a server batch requests?", "Hi"]
SIZES = [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8]
"""Numbers of 4, 2, 8 and 1 bytes, and ints, in which caches and weights are kept, too."""
NEW = 16  # the model ends its answer to the last of TEXTS sooner; the lab's functions go on

ODD = Shape(
    vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
"""Nothing equals anything else: 6 query heads, 2 KV heads, and head_dim is not hidden_size / heads (8)."""


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    """Small products are faster in one thread."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def course():
    return Network("course")


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("odd") / "checkpoint", ODD, seed=5)


@pytest.fixture(scope="module")
def odd(odd_folder):
    """A network with random weights: whatever is wrong shows in its logits."""
    return Network(odd_folder)


@pytest.fixture(scope="module")
def odd_in_bfloat16(odd_folder):
    return Network(odd_folder, torch.bfloat16)


@pytest.fixture(scope="module")
def oracle():
    """transformers with the course's checkpoint."""
    from nano_qwen3_serving.testing.oracle import Oracle

    return Oracle(BUNDLED / "course")


@pytest.fixture(scope="module")
def odd_oracle(odd_folder):
    from nano_qwen3_serving.testing.oracle import Oracle

    return Oracle(odd_folder)


class Watched:
    """The network; notes which positions each call computed, and the logits it gave."""

    def __init__(self, network: Network) -> None:
        self.config, self.dtype, self.tokenizer = network.config, network.dtype, network.tokenizer
        self.spans: list[tuple[int, int]] = []
        self.logits: list[Tensor] = []
        self.appended = 0
        self.returned: set[torch.dtype] = set()
        self._network = network

    def __call__(self, token_ids: Sequence[int], start: int, append) -> Tensor:
        self.spans.append((start, start + len(token_ids)))

        def counted(layer, k, v):
            self.appended += k.nbytes + v.nbytes
            pair = append(layer, k, v)
            self.returned |= {tensor.dtype for tensor in pair}
            return pair

        self.logits.append(self._network(token_ids, start, counted))
        return self.logits[-1]

    @property
    def computed(self) -> int:
        return sum(end - start for start, end in self.spans)


def changed_by(func, args, kwargs) -> list[Tensor]:
    """The arguments that an operator writes to: of one in place, or with out=."""
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, (kwargs or {}).get(a.name)) for a in arguments)]
    written = [value for a, value in given if a.alias_info is not None and a.alias_info.is_write]
    return [t for t in tree_leaves(written) if isinstance(t, Tensor)]


LOOKS_LIKE = re.compile("::new_|_like$")
"""Operators that take a tensor's shape and dtype, and read none of its numbers."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that torch's operators read (each memory once) and write (views write nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[int, Tensor]] = {}
        self.written = 0
        self.operators: list[str] = []
        self.products: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        changed = changed_by(func, args, kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = [t for t in tensors if not any(t is other for other in changed)]
        memories = {t.untyped_storage().data_ptr() for t in inputs}
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        fresh = [t for t in outputs if t.untyped_storage().data_ptr() not in memories]
        self.operators.append(func._schema.name)
        if func._schema.name in ("aten::mm", "aten::bmm", "aten::addmm", "aten::linear", "aten::matmul"):
            self.products += inputs
        if changed and not func._schema.overload_name.endswith("out"):  # a write into a part: as much as there is to write
            self.written += sum(t.nbytes for t in inputs) or changed[0].nbytes
        else:
            self.written += sum(t.nbytes for t in fresh)
        if (fresh or changed) and not LOOKS_LIKE.search(func._schema.name):  # no view: its inputs were read
            for t in inputs:
                known = self.seen.get(t.data_ptr(), (0, t))  # t is held, so that no address comes twice
                self.seen[t.data_ptr()] = max(known, (t.nbytes, t), key=lambda pair: pair[0])
        return out

    def memories(self, floating: bool = False) -> list[int]:
        """Bytes read of each memory, or of each that holds floating numbers: all of its views, but not more than it has."""
        read: dict[int, int] = {}
        for num_bytes, t in self.seen.values():
            if t.dtype.is_floating_point or not floating:
                memory = t.untyped_storage()
                read[memory.data_ptr()] = min(memory.nbytes(), read.get(memory.data_ptr(), 0) + num_bytes)
        return list(read.values())

    @property
    def held(self) -> int:
        """Bytes of the memories of which anything was read."""
        memories = [t.untyped_storage() for _, t in self.seen.values()]
        return sum({memory.data_ptr(): memory.nbytes() for memory in memories}.values())


class Unwritten(TorchDispatchMode):
    """Notes memory that was only asked for (torch.empty and its kin), and how much of it nobody has written yet."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[int, tuple[int, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if re.match("aten::(new_)?empty", func._schema.name):
            memory = out.untyped_storage()
            self.left[memory.data_ptr()] = memory.nbytes(), out  # out is held, so that no address comes twice
        for t in changed_by(func, args, kwargs):
            address = t.untyped_storage().data_ptr()
            if address in self.left:
                left, held = self.left[address]
                self.left[address] = left - t.nbytes, held
        return out

    def read_by(self, traffic: Traffic) -> int:
        """Bytes that nobody has written, of memories that were read."""
        read = {t.untyped_storage().data_ptr() for _, t in traffic.seen.values()}
        return sum(max(left, 0) for address, (left, _) in self.left.items() if address in read)


def story(found, right, *known: tuple[float, str]) -> str:
    """What `found` is in place of what is `right`, in a sentence after a full stop; nothing if it is nothing that is known.

    known: numbers, and what they are; all that fit are told.
    """
    fits = dict.fromkeys(what for number, what in known if found == pytest.approx(number, rel=1e-6) and found != right)
    return f". That is {', or '.join(fits)}" if fits else ""


def of_any_dtype(call, *arguments):
    """What `call` answers, one of whose arguments is a dtype; where it has none for ints, a failure that says where it is."""
    __tracebackhide__ = True
    [dtype] = [one for one in arguments if isinstance(one, torch.dtype)]
    try:
        return call(*arguments)
    except (TypeError, ValueError, KeyError) as error:
        if dtype.is_floating_point:
            raise
        said = f"{type(error).__name__}: {error}"
    pytest.fail(
        f"{dtype} raised {said}. Caches and weights are kept in ints, too: dtype.itemsize is the bytes of a number of any dtype, "
        f"here {dtype.itemsize}", pytrace=False)


def prompts(network) -> list[list[int]]:
    return [network.tokenizer.encode(text) for text in TEXTS]


def check_new_tokens(output, num_tokens: int) -> None:
    """A list of so many ints."""
    assert isinstance(output, list) and all(isinstance(token, int) for token in output), (
        f"expected a list of ints, the new tokens; got {output!r}")
    assert len(output) == num_tokens, (
        f"{num_tokens} new tokens were asked for: without the prompt, and going on after an end-of-sequence token; "
        f"{len(output)} came: {output}")


def check_against(oracle, asked: list[list[int]], outputs: list[list[int]]) -> None:
    """Tokens as transformers', except where its two best are closer than 1e-4 (its margin rule)."""
    for output in outputs:
        check_new_tokens(output, NEW)
    expected = oracle.greedy(asked, NEW)
    cut = [output[: len(want.token_ids)] for output, want in zip(outputs, expected, strict=True)]
    oracle.compare(asked, expected, cut)


# TODO 1: generate without a cache


@pytest.mark.todo(1, points=6)
def test_todo_1_tokens_are_those_of_transformers(lab, course, oracle):
    asked = prompts(course)
    check_against(oracle, asked, [lab.generate_uncached(course, list(prompt), NEW) for prompt in asked])


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize(("length", "num_tokens"), [(6, 3), (1, 4), (5, 1)])
def test_todo_1_each_pass_computes_all_tokens_so_far(lab, odd, length, num_tokens):
    watched = Watched(odd)
    output = lab.generate_uncached(watched, list(range(10, 10 + length)), num_tokens)
    check_new_tokens(output, num_tokens)
    wanted = [(0, length + i) for i in range(num_tokens)]
    assert watched.spans == wanted, (
        f"{length} tokens of prompt, {num_tokens} new: expected passes over positions {wanted} "
        f"(first, end), got {watched.spans}")
    # the sum of length + i for i below num_tokens
    assert watched.computed == num_tokens * length + num_tokens * (num_tokens - 1) // 2
    assert output == [int(row.argmax()) for row in watched.logits], "each new token is the one with the largest logit"


@pytest.mark.todo(1, points=2)
def test_todo_1_leaves_the_prompt_alone_and_may_generate_nothing(lab, odd):
    prompt = [10, 11, 12]
    first = lab.generate_uncached(odd, prompt, 3)
    assert prompt == [10, 11, 12], f"the caller's prompt was changed to {prompt}"
    assert lab.generate_uncached(odd, tuple(prompt), 3) == first, "the same prompt must give the same tokens"
    watched = Watched(odd)
    lab.generate_uncached(watched, prompt, 3)
    assert len(watched.spans) == 3, (
        f"3 tokens are 3 passes, every time; for a prompt that was answered before there were {len(watched.spans)}")
    watched = Watched(odd)
    assert lab.generate_uncached(watched, prompt, 0) == [], "for 0 tokens the answer is []"
    assert watched.spans == [], f"0 tokens were asked for, and still there were passes over positions {watched.spans}"


# TODO 2: a contiguous cache


def new_keys(config, count: int, first: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """k and v of `count` tokens: all numbers of token i's key are i, of its value 1000 + i. Not contiguous."""
    numbers = torch.arange(first, first + count).to(dtype)
    shape = (config.num_key_value_heads, config.head_dim, count)
    k = numbers.expand(shape).permute(2, 0, 1)
    v = (1000 + torch.arange(first, first + count)).to(dtype).expand(shape).permute(2, 0, 1)
    return k, v


@pytest.mark.todo(2, points=4)
def test_todo_2_append_returns_all_keys_and_values_of_its_layer_oldest_first(lab, odd):
    cache = lab.ContiguousCache(odd.config, 12, torch.float32)
    for first, count in ((0, 5), (5, 1), (6, 3), (9, 1)):
        for layer in range(odd.config.num_hidden_layers):
            k, v = new_keys(odd.config, count, first + 100 * layer)
            keys, values = cache.append(layer, k, v)
            wanted_k, wanted_v = new_keys(odd.config, first + count, 100 * layer)
            for name, got, wanted in (("keys", keys, wanted_k), ("values", values, wanted_v)):
                assert got.shape == wanted.shape, (
                    f"layer {layer} holds {first + count} tokens: expected {name} {list(wanted.shape)}, "
                    f"got {list(got.shape)}")
                assert torch.equal(got, wanted), (
                    f"layer {layer} holds tokens {100 * layer} to {100 * layer + first + count - 1}; "
                    f"its {name} are those of {got[:, 0, 0].tolist()}")


def check_refused(cache, k: Tensor, v: Tensor, holds: int, layer: int = 0) -> None:
    """Appending to a layer of a cache of 5 raises ValueError, and nothing else."""
    came = None
    try:
        cache.append(layer, k, v)
    except Exception as error:
        came = error
    assert isinstance(came, ValueError), (
        f"layer {layer} of a cache of 5 holds {holds} and was given {len(k)}: expected ValueError, got "
        f"{'no error' if came is None else type(came).__name__}. max_tokens says what fits, also where the memory has more")


@pytest.mark.todo(2, points=3)
def test_todo_2_a_full_cache_refuses_and_keeps_what_it_holds(lab, odd):
    cache = lab.ContiguousCache(odd.config, 5, torch.float32)  # what is made in powers of two, or in blocks, has room for more
    cache.append(0, *new_keys(odd.config, 4, 0))
    check_refused(cache, *new_keys(odd.config, 2, 4), holds=4)
    keys, values = cache.append(0, *new_keys(odd.config, 1, 4))  # exactly full
    held = keys[:, 0, 0].tolist()
    assert held == [0, 1, 2, 3, 4], f"after a refused append the keys are those of {held}"
    assert values[:, 0, 0].tolist() == [1000, 1001, 1002, 1003, 1004]
    check_refused(cache, *new_keys(odd.config, 1, 5), holds=5)
    assert len(cache.append(1, *new_keys(odd.config, 5, 0))[0]) == 5, "layer 1 had room for 5 tokens of its own"
    check_refused(cache, *new_keys(odd.config, 1, 5), holds=5, layer=1)


@pytest.mark.todo(2, points=1)
def test_todo_2_caches_share_nothing_and_keep_copies_in_their_own_dtype(lab, odd):
    first, second = (lab.ContiguousCache(odd.config, 4, torch.bfloat16) for _ in range(2))
    k, v = (t.contiguous() for t in new_keys(odd.config, 2, 1, torch.bfloat16))
    stored = {"keys": k.clone(), "values": v.clone()}
    first.append(0, k, v)
    second.append(0, k + 7, v + 16)  # bfloat16 has only every fourth number near 1000
    k.zero_(), v.zero_()  # the network's memory may be used for something else
    keys, values = first.append(0, *new_keys(odd.config, 1, 3, torch.bfloat16))
    for got, (name, wanted) in zip((keys, values), stored.items(), strict=True):
        assert got.shape == (3, *wanted.shape[1:]), (
            f"a layer that held 2 tokens was given 1: expected {name} {[3, *wanted.shape[1:]]}, got {list(got.shape)}")
        # Storing rounds nothing, so the tolerance is 0: what was bfloat16 stays bit for bit what it was.
        assert torch.equal(got[:2], wanted), (
            f"the {name} changed after they were stored: with another cache, or with the caller's tensor")
    assert keys.dtype == values.dtype == torch.bfloat16, f"a bfloat16 cache returned {keys.dtype}"


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("own, given", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)], ids=str)
def test_todo_2_keys_of_another_dtype_are_kept_in_the_caches_or_refused(lab, odd, own, given):
    cache = lab.ContiguousCache(odd.config, 4, own)
    for first, count in ((0, 3), (3, 1)):
        try:
            pair = cache.append(0, *new_keys(odd.config, count, first, given))
        except TodoError:
            raise
        except (RuntimeError, TypeError, ValueError):
            break  # refused, so nobody can take them for numbers of the cache's dtype
        # 1001 is 1000 in bfloat16; what was stored of it is that, whatever it was before
        for name, got, want in zip(("keys", "values"), pair, new_keys(odd.config, first + count, 0, given), strict=True):
            assert got.dtype == own, f"a cache of {own} was given {name} of {given} and returned {got.dtype}"
            assert torch.equal(got, want.to(own)), f"a cache of {own} was given {name} of {given} and returned other numbers"


@pytest.mark.todo(2, points=3)
def test_todo_2_old_tokens_are_never_copied(lab, odd):
    steps = 1024
    cache = lab.ContiguousCache(odd.config, steps, torch.float32)
    tokens = [new_keys(odd.config, 1, i) for i in range(steps)]
    new = sum(k.nbytes + v.nbytes for k, v in tokens)
    with Traffic() as traffic:
        for k, v in tokens:
            cache.append(0, k, v)
    # Each byte once would be `new`. Copying all old ones in each step is 512 times as much. Memory that doubles, the last
    # time just before the end, is zeroed (4 times `new` in all), and the old tokens are copied to it (2); with a copy of k
    # and v on the way that is 8.
    assert traffic.written <= 10 * new, (
        f"{steps} tokens have {new:,} bytes of keys and values, but {traffic.written:,} were written to append them one by one: "
        "write into the memory set aside in the beginning, and return views of it")


@pytest.mark.todo(2, points=4)
def test_todo_2_tokens_are_those_of_transformers(lab, course, oracle):
    asked = prompts(course)
    check_against(oracle, asked, [lab.generate_cached(course, list(prompt), NEW) for prompt in asked])


@pytest.mark.todo(2, points=2)
@pytest.mark.parametrize(("length", "num_tokens"), [(6, 3), (1, 4), (5, 1), (7, 9)])
def test_todo_2_every_token_is_computed_exactly_once(lab, odd, odd_oracle, length, num_tokens):
    watched, prompt = Watched(odd), list(range(10, 10 + length))
    output = lab.generate_cached(watched, prompt, num_tokens)
    check_new_tokens(output, num_tokens)
    wanted = [(0, length)] + [(length + i, length + i + 1) for i in range(num_tokens - 1)]
    assert watched.spans == wanted, (
        f"{length} tokens of prompt, {num_tokens} new: expected passes over positions {wanted} (first, end), "
        f"got {watched.spans}. "
        "The last new token is never computed: nobody asks what follows it.")
    assert watched.computed == length + num_tokens - 1
    # float32 against float32: the sums are the same numbers in another order, so differences are a few units
    # in the last place (6e-8) times the square root of the about 1,000 additions on the way; 1e-4 leaves room.
    rows = odd_oracle.logits(prompt + output[:-1])[length - 1 :]
    torch.testing.assert_close(torch.stack(watched.logits), rows, rtol=1e-4, atol=1e-4 * float(rows.std()))


@pytest.mark.todo(2, points=1)
def test_todo_2_a_generation_leaves_nothing_for_the_next(lab, odd):
    prompt = [10, 11, 12]
    first = lab.generate_cached(odd, prompt, 5)
    lab.generate_cached(odd, [200, 201], 5)
    assert prompt == [10, 11, 12], f"the caller's prompt was changed to {prompt}"
    assert lab.generate_cached(odd, tuple(prompt), 5) == first, "the same prompt gave other tokens after another one was served"
    watched = Watched(odd)
    lab.generate_cached(watched, prompt, 5)
    assert len(watched.spans) == 5, (
        f"5 tokens are 5 passes, every time; for a prompt that was answered before there were {len(watched.spans)}")
    watched = Watched(odd)
    assert lab.generate_cached(watched, prompt, 0) == [], "for 0 tokens the answer is []"
    assert watched.spans == [], f"0 tokens were asked for, and still there were passes over positions {watched.spans}"


@pytest.mark.todo(2, points=1)
def test_todo_2_the_cache_of_a_generation_has_the_networks_dtype(lab, odd_in_bfloat16):
    watched, other = Watched(odd_in_bfloat16), ""
    try:
        lab.generate_cached(watched, [10, 11, 12], 3)
    except TodoError:
        raise
    except RuntimeError as error:  # of the network's own products: keys of one dtype, queries of another
        other = f", which then raised {error}"
    assert watched.returned == {torch.bfloat16}, (
        f"network.dtype is torch.bfloat16; keys and values of {sorted(map(str, watched.returned))} went back to it{other}")


# TODO 3: bytes per token


def qwen(**fields) -> ModelConfig:
    """Qwen3-0.6B's shape, with some fields replaced."""
    shape = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960}
    return ModelConfig(**(shape | fields))


def bytes_story(said, right, config: ModelConfig, dtype: torch.dtype) -> str:
    """What a wrong number of bytes a token is."""
    layers, heads, kv_heads = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    numbers = 2 * layers * kv_heads * config.head_dim
    return story(
        said, right, (right / 2, "the keys alone"), (right / layers, "one layer's"), (numbers, "numbers, not bytes"),
        (right * heads / kv_heads, "what query heads would leave: keys and values have KV heads"),
        (right / config.head_dim * (config.hidden_size // heads), "right for a head_dim of hidden_size / heads"),
        (4 * numbers, "right for numbers of 4 bytes"), (2 * numbers, "right for numbers of 2 bytes"))


def kept_by(network: Network, tokens: int) -> int:
    """Bytes of keys and values that a pass over `tokens` tokens hands out."""
    watched = Watched(network)
    watched(list(range(10, 10 + tokens)), 0, lambda layer, k, v: (k, v))
    return watched.appended


@pytest.mark.todo(3, points=5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_todo_3_is_what_a_pass_of_the_network_hands_to_its_cache(lab, odd_folder, dtype):
    network = Network(odd_folder, dtype)
    said = lab.kv_bytes_per_token(network.config, dtype)
    handed = kept_by(network, 5) / 5
    assert said == handed, (
        f"5 tokens brought {handed:g} bytes each in {dtype}; kv_bytes_per_token says {said}"
        f"{bytes_story(said, handed, network.config, dtype)}")


@pytest.mark.todo(3, points=5)
@pytest.mark.parametrize("fields", [
    {}, {"num_hidden_layers": 1}, {"num_key_value_heads": 16}, {"num_key_value_heads": 1},
    {"hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 36}], ids=str)
def test_todo_3_is_what_the_engine_sets_aside(lab, fields):
    config = qwen(**fields)
    for dtype in SIZES:
        said = of_any_dtype(lab.kv_bytes_per_token, config, dtype)
        block = TorchPagedAttention(config, 16, dtype, torch.device("cpu")).bytes_per_block
        assert said * 16 == block, (
            f"the engine's blocks of 16 tokens have {block:,} bytes in {dtype} for Qwen3-0.6B's shape with {fields}; "
            f"16 times kv_bytes_per_token is {said * 16:,}{bytes_story(said, block / 16, config, dtype)}")
        assert isinstance(said, int), f"bytes are an int, got {said!r}"


# TODO 4: FLOPs and bytes of a decode step


def counted_step(network: Network, context: int) -> SimpleNamespace:
    """A real decode step over `context` tokens, itself included: its FLOPs by torch, its bytes of keys and values."""
    config, read = network.config, 0

    def append(layer, k, v):
        nonlocal read
        old = torch.ones(context - 1, config.num_key_value_heads, config.head_dim)
        keys, values = torch.cat([old, k]), torch.cat([old, v])
        read += keys.nbytes + values.nbytes
        return keys, values

    with FlopCounterMode(display=False) as counter:
        network([10], context - 1, append)
    return SimpleNamespace(flops=counter.get_total_flops(), kv_bytes=read)


def counted_matrices(network: Network, batch: int) -> int:
    """FLOPs of `batch` rows times every matrix, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        for matrix in network.matrices():
            F.linear(torch.ones(batch, matrix.shape[1]), matrix)
    return counter.get_total_flops()


def matrices_story(cost, network: Network, flops: int, num_bytes: int, batch: int) -> str:
    """What a wrong cost of the matrices is; `flops` and `num_bytes` are right."""
    config, numbers = network.config, flops // (2 * batch)
    head, itemsize = config.hidden_size * config.vocab_size, num_bytes // numbers
    mlp = config.num_hidden_layers * config.hidden_size * config.intermediate_size
    counts = [(numbers - head, "the matrices without the head"), (numbers - mlp, "two matrices in the MLP, which has three"),
              (numbers + head, "the embedding counted, too, of which a token takes one row"),
              ((numbers - head) / config.num_hidden_layers + head, "one layer and the head")]
    told = story(cost.flops, flops, *((2 * batch * count, what) for count, what in counts), (2 * numbers, "for one sequence"),
                 (numbers * batch, "multiplications alone: with an addition each, they are two FLOPs"))
    return told or story(
        cost.num_bytes, num_bytes, *((itemsize * count, what) for count, what in counts), (numbers, "numbers, not bytes"),
        (num_bytes * batch, "read for each sequence: a step reads a matrix once, for all of them"),
        (4 * numbers, "right for numbers of 4 bytes"), (2 * numbers, "right for numbers of 2 bytes"))


@pytest.mark.todo(4, points=5)
@pytest.mark.parametrize("name", ["course", "odd"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_todo_4_matrices_are_multiplied_for_everybody_and_read_once(lab, request, name, batch):
    network = request.getfixturevalue(name)
    for dtype in SIZES:
        cost = of_any_dtype(lab.matrices_cost, network.config, batch, dtype)
        flops = counted_matrices(network, batch)
        num_bytes = sum(matrix.numel() * dtype.itemsize for matrix in network.matrices())
        why = matrices_story(cost, network, flops, num_bytes, batch)
        assert cost.flops == flops, (
            f"{name}, batch {batch}: torch counts {flops:,} FLOPs with the matrices, you {cost.flops:,}{why}")
        assert cost.num_bytes == num_bytes, (
            f"{name}, batch {batch}, {dtype}: all matrices have {num_bytes:,} bytes, and you read {cost.num_bytes:,}{why}")


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("name", ["course", "odd"])
@pytest.mark.parametrize("context", [1, 2, 40])
def test_todo_4_attention_is_the_rest_of_a_real_step(lab, request, name, context):
    network = request.getfixturevalue(name)
    step = counted_step(network, context)
    cost = lab.attention_cost(network.config, 1, context, torch.float32)
    rest, config = step.flops - counted_matrices(network, 1), network.config
    sharing = config.num_attention_heads // config.num_key_value_heads
    why = story(
        cost.flops, rest, (rest / 2, "half: there are two products, with keys and with values, and two FLOPs for each number"),
        (rest / sharing, "the products of KV heads: every query head makes its own"),
        (rest / config.num_hidden_layers, "one layer's"), (rest / context, "for one token of the context"))
    assert cost.flops == rest, (
        f"{name}, context {context}: torch counts {rest:,} FLOPs beside the matrices in a real step, you {cost.flops:,}{why}")
    why = story(
        cost.num_bytes, step.kv_bytes, (step.kv_bytes / 2, "the keys alone, or the values"),
        (step.kv_bytes / context, "one token of the context"), (step.kv_bytes * sharing, "of query heads: KV heads are read"))
    assert cost.num_bytes == step.kv_bytes, (
        f"{name}, context {context}: the step read {step.kv_bytes:,} bytes of keys and values, you count {cost.num_bytes:,}{why}")


@pytest.mark.todo(4, points=3)
def test_todo_4_every_sequence_has_keys_and_values_of_its_own(lab):
    for dtype in (*SIZES, torch.bfloat16):
        one, many = (of_any_dtype(lab.attention_cost, qwen(), batch, 100, dtype) for batch in (1, 32))
        assert many.flops == 32 * one.flops, "32 sequences attend 32 times as much as one"
        assert many.num_bytes == 32 * one.num_bytes, "32 sequences read 32 caches: nothing of them is shared"
    # one sequence's, in bytes, as the engine would store it
    block = TorchPagedAttention(qwen(), 100, torch.bfloat16, torch.device("cpu")).bytes_per_block
    assert one.num_bytes == block, f"100 tokens of Qwen3-0.6B in bfloat16 are {block:,} bytes; you count {one.num_bytes:,}"


@pytest.mark.todo(4, points=3)
def test_todo_4_intensity_is_flops_per_byte(lab):
    assert lab.arithmetic_intensity(lab.Cost(flops=6, num_bytes=4)) == 1.5, "6 FLOPs on 4 bytes are 1.5 FLOPs a byte"
    assert lab.arithmetic_intensity(lab.Cost(flops=1, num_bytes=4)) == 0.25


# TODO 5: the machine's ceilings


class FakeClock:
    """A clock that only work moves: call number i of `work` takes seconds[i]."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.now, self.seconds, self.calls = -100.0, list(seconds), 0  # where a clock begins means nothing

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        assert self.calls < len(self.seconds), f"the work was done more than {len(self.seconds)} times"
        self.now += self.seconds[self.calls]
        self.calls += 1


@pytest.mark.todo(5, points=5)
@pytest.mark.parametrize(("seconds", "median"), [
    ((9, 3, 1, 2), 2), ((50, 1, 40, 2, 3, 4), 3), ((1, 7, 5, 9, 6, 8), 7), ((5, 4), 4)])
def test_todo_5_median_of_the_calls_after_the_first(lab, seconds, median):
    clock = FakeClock(seconds)
    said = lab.median_seconds(clock.work, repeats=len(seconds) - 1, clock=clock)
    assert clock.calls == len(seconds), f"one call to warm up and {len(seconds) - 1} timed ones; there were {clock.calls}"
    timed = seconds[1:]
    why = story(
        said, median, (min(timed), "the smallest"), (sum(timed) / len(timed), "the mean"), (max(timed), "the largest"),
        (sum(timed), "their sum"), (sorted(seconds)[len(seconds) // 2], "the median with the first call in it"),
        (sum(seconds) / len(seconds), "the mean with the first call in it"), (seconds[0], "the first call's"))
    assert said == pytest.approx(median), (
        f"the calls took {', '.join(map(str, seconds))} seconds, the first to warm up: the median is {median}, not {said:g}{why}")


@pytest.mark.todo(5, points=1)
def test_todo_5_the_usual_clock_counts_seconds(lab):
    assert lab.median_seconds(lambda: time.sleep(0.004), repeats=3) >= 0.004, "sleeping 4 ms takes at least 0.004 seconds"


class Judge:
    """In the place of median_seconds: runs the work once, watched, and says it took `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0
        self.traffic, self.flops = Traffic(), FlopCounterMode(display=False)

    def __call__(self, work) -> float:
        self.calls += 1
        assert callable(work), (
            f"what is timed is a function without arguments, not {type(work).__name__}: do not call it yourself")
        with self.flops, self.traffic:
            work()
        return self.seconds


def check_all_was_read(traffic: Traffic, num_bytes: int) -> None:
    """At least num_bytes of floating numbers, by torch, and next to nothing was written."""
    read = sum(traffic.memories())
    assert read > 0, "no operator of torch read anything in the timed function: read with torch, not with numpy or Python"
    assert traffic.held >= num_bytes, (
        f"a buffer of at least {num_bytes:,} bytes was asked for; what torch read from has {traffic.held:,}: "
        "a smaller one stays in the cache, however often it is read")
    assert read >= num_bytes, (
        f"a buffer of at least {num_bytes:,} bytes was to be read; it has {traffic.held:,}, "
        f"and only {read:,} of them were read")
    dtypes = sorted({str(t.dtype) for _, t in traffic.seen.values()})
    assert sum(traffic.memories(floating=True)) >= num_bytes, (
        f"the buffer was read as {', '.join(dtypes)}: take floating numbers. "
        "Many reductions of other ones are computed number by number, and take longer than reading does")
    assert traffic.written <= read / 100, (
        f"beside {read:,} bytes read, {traffic.written:,} were written in the timed function: make the buffer outside, "
        "and reduce it to one number")


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("num_bytes", [1 << 20, 300_001, 5_000_001])
@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_todo_5_bandwidth_is_the_bytes_that_were_read_by_the_seconds(lab, num_bytes, seconds):
    judge = Judge(seconds)
    said = lab.read_bandwidth(num_bytes, judge)
    assert judge.calls == 1, f"seconds_of was called {judge.calls} times; once, with the function that reads"
    check_all_was_read(judge.traffic, num_bytes)
    memories = judge.traffic.memories()
    # A small operand, such as a vector that the buffer is multiplied by, may be counted or not.
    buffer, read = sum(num for num in memories if num > max(memories) / 10), sum(memories)
    why = story(said * seconds, buffer, (num_bytes, f"the {num_bytes:,} bytes that were asked for: count those of the buffer"))
    assert (1 - 1e-6) * buffer <= said * seconds <= (1 + 1e-6) * read, (
        f"{read:,} bytes in {seconds} seconds are {read / seconds:,.0f} bytes per second, not {said:,.0f}{why}")


@pytest.mark.todo(5, points=1)
def test_todo_5_the_buffer_was_written_before_it_is_read(lab):
    judge, unwritten = Judge(1.0), Unwritten()
    with unwritten:
        lab.read_bandwidth(1 << 20, judge)
    left = unwritten.read_by(judge.traffic)
    assert left <= (1 << 20) / 100, (
        f"of the buffer that was read, {left:,} bytes were never written: memory that is only asked for is one page "
        "of zeros many times over, which stays in the cache. Fill it first, with torch")


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "float64"])
def test_todo_5_matmul_rate_is_the_operations_of_a_product_by_the_seconds(lab, dtype):
    for size, seconds in ((32, 0.5), (45, 2.0)):
        judge = Judge(seconds)
        said = lab.matmul_rate(size, dtype, judge)
        flops = judge.flops.get_total_flops()
        assert judge.calls == 1, f"seconds_of was called {judge.calls} times; once, with the function that multiplies"
        assert flops == 2 * size**3, (
            f"one product of {size} × {size} matrices has {2 * size**3:,} FLOPs by torch's count; "
            f"the timed function had {flops:,}")
        made = [name for name in judge.traffic.operators if re.search("rand|normal|ones|zeros|fill|_to_copy|empty", name)]
        assert not made, f"the timed function also did {made}: make the matrices outside, in their dtype"
        assert {t.dtype for t in judge.traffic.products} == {dtype}, f"the product was to be of {dtype}"
        assert not any(t.is_meta for t in judge.traffic.products), "on the device meta nothing is multiplied: it has only shapes"
        assert said == pytest.approx(flops / seconds), (
            f"{flops:,} FLOPs in {seconds} seconds are {flops / seconds:,.0f} a second, not {said:,.0f}")


@pytest.mark.todo(5, points=1)
def test_todo_5_a_real_measurement_is_in_the_bounds_of_all_machines(lab):
    bandwidth, rate = lab.read_bandwidth(1 << 22), lab.matmul_rate(128, torch.float32)
    # From a throttled single-board computer under load to more than any processor has.
    assert 1e5 < bandwidth < 1e14, f"{bandwidth:g} bytes per second: is it in bytes, and in seconds?"
    assert 1e5 < rate < 1e16, f"{rate:g} FLOPs per second: is it in FLOPs, and in seconds?"


# TODO 6: predict, then measure


def shares(config: ModelConfig, batch: int, context: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """(FLOPs, bytes) of matrices and attention, from the shapes of Qwen3's tensors."""
    rows = [(config.num_attention_heads * config.head_dim, config.hidden_size)] * 2
    rows += [(config.num_key_value_heads * config.head_dim, config.hidden_size)] * 2
    rows += [(config.intermediate_size, config.hidden_size)] * 3
    numbers = config.num_hidden_layers * sum(a * b for a, b in rows) + config.vocab_size * config.hidden_size
    keys = config.num_hidden_layers * context * config.head_dim
    return [(2 * numbers * batch, numbers * dtype.itemsize),
            (4 * keys * config.num_attention_heads * batch, 2 * keys * config.num_key_value_heads * batch * dtype.itemsize)]


# FLOPs a byte, in bfloat16: matrices have `batch`, attention has 2; in float32 half of that. One of them computes while
# the other reads where the machine's own ratio lies between: it is 20, 1.5, 3.5, 100 and 0.33 here.
@pytest.mark.todo(6, points=4)
@pytest.mark.parametrize(("batch", "context"), [(1, 1), (1, 4096), (8, 100), (64, 4096), (256, 4096)])
@pytest.mark.parametrize(("bandwidth", "rate"), [(30e9, 600e9), (20e9, 30e9), (100e9, 350e9), (4e12, 4e14), (30e9, 10e9)])
def test_todo_6_a_step_takes_as_long_as_its_parts_each_at_its_ceiling(lab, batch, context, bandwidth, rate):
    for dtype in SIZES:
        said = of_any_dtype(lab.predict_step_seconds, qwen(), batch, context, dtype, lab.Ceilings(bandwidth, rate))
        parts = [(flops / rate, num_bytes / bandwidth) for flops, num_bytes in shares(qwen(), batch, context, dtype)]
        wanted = sum(max(part) for part in parts)
        (m_compute, m_read), (a_compute, a_read) = parts
        assert said == pytest.approx(wanted), (
            f"batch {batch}, context {context}, {dtype}: computing with the matrices takes {m_compute:.6g} s, "
            f"reading them {m_read:.6g} s; attention {a_compute:.6g} s and {a_read:.6g} s. "
            f"The slower of each pair, added: {wanted:.6g} s; you say {said:.6g} s"
            + story(said, wanted, (m_compute + m_read + a_compute + a_read, "all four added: reading and computing overlap"),
                    (max(m_compute + a_compute, m_read + a_read), "all computing, or all reading: the parts take turns"),
                    (max(map(max, parts)), "the slower part alone"), (sum(map(min, parts)), "the faster of each"),
                    (m_compute + a_compute, "computing alone"), (m_read + a_read, "reading alone")))


@pytest.mark.todo(6, points=4)
@pytest.mark.parametrize("dtype", SIZES, ids=str)
@pytest.mark.parametrize(("bandwidth", "rate"), [(30e9, 500e9), (100e9, 100e9), (4e12, 8e14)])
def test_todo_6_at_the_ridge_matrices_take_as_long_to_read_as_to_compute(lab, dtype, bandwidth, rate):
    said = of_any_dtype(lab.ridge_batch, dtype, lab.Ceilings(bandwidth, rate))
    numbers = 1_000_000  # of a matrix; it does not matter how many
    compute, read = 2 * numbers * said / rate, numbers * dtype.itemsize / bandwidth
    assert compute == pytest.approx(read), (
        f"at batch {said:g} a matrix of a million {dtype} takes {compute:.2e} s to compute with and {read:.2e} s to read; "
        "at the ridge both take as long"
        + story(said, rate / bandwidth * dtype.itemsize / 2, (rate / bandwidth, "right for numbers of 2 bytes"),
                (rate / bandwidth * dtype.itemsize, "twice the ridge: a number makes two FLOPs for each sequence"),
                (rate / bandwidth / 2, "right for numbers of one byte"), (bandwidth / rate, "upside down"),
                (rate / bandwidth / dtype.itemsize * 2, "bytes and FLOPs of a number exchanged")))


class Decoding:
    """What is measured: `prepare`, the steps that it makes, and a timer. In which order batches are measured is not judged.

    Attributes:
        log: what happened, in order.
        late: what happened when it was too late, in words: a step of a batch that was no longer there, prompts on the clock.
    """

    def __init__(self, took: dict[int, float]) -> None:
        self.took, self.log, self.late = took, [], []
        self._there, self._timed = None, None  # the batch that was prepared last; those of the steps on the clock

    def prepare(self, batch: int):
        if self._timed is not None:
            self.late.append(f"the prompts of batch {batch} were computed while the timer ran")
        self._there = batch
        self.log.append(("prepare", batch))
        return lambda: self._step(batch)

    def _step(self, batch: int) -> None:
        if batch != self._there:
            self.late.append(f"a step of batch {batch} was done after prepare({self._there}), which had ended it")
        self.log.append(("step", batch))
        if self._timed is not None:
            self._timed.append(batch)

    def seconds_of(self, work) -> float:
        """As the lab's timer, by a clock that only steps move."""
        assert callable(work), f"seconds_of gets the function that does a step, not {work!r}"
        self._timed = []
        work()
        timed, self._timed = self._timed, None
        assert timed, "what was timed did no step"
        return sum(self.took[batch] for batch in timed)


@pytest.mark.todo(6, points=4)
def test_todo_6_throughput_is_the_tokens_of_a_step_by_its_seconds(lab):
    for took in ({1: 0.4, 4: 0.5, 16: 1.0}, {16: 2.0, 2: 0.25, 8: 0.5}):
        decoding = Decoding(took)
        said = lab.measure_throughput(decoding.prepare, list(took), decoding.seconds_of)
        right = {batch: batch / seconds for batch, seconds in took.items()}
        assert not decoding.late, (
            f"{decoding.late[0]}. Prompts are computed before the timer starts, and a batch is measured before another is "
            f"prepared, which ends it. What happened: {decoding.log}")
        assert said == pytest.approx(right), (
            f"steps took so many seconds: {took}. In tokens per second that is {right}, not {said}")
    decoding = Decoding({})
    lab.measure_throughput(decoding.prepare, (1, 4))
    steps = [decoding.log.count(("step", batch)) for batch in (1, 4)]
    assert min(steps) > 2 and not decoding.late, (
        f"without a seconds_of the steps are timed by median_seconds, which makes a call to warm up and then several to time; "
        f"for the batches 1 and 4 there were {steps}. {' '.join(decoding.late[:1])}")


@pytest.mark.todo(6, points=2)
def test_todo_6_the_program_predicts_and_measures(lab, capsys, tmp_path):
    lab.ridge_batch(torch.float32, lab.Ceilings(1.0, 1.0))  # says which TODO this is if it is unwritten
    svg, place, cache = tmp_path / "picture.svg", tmp_path / "place", CacheSize(1 << 20, "this test")
    lab.show_costs()
    ceilings = lab.show_ceilings(cache, torch.float32, 128)
    lab.show_curve(cache, torch.float32, ceilings, (1, 2), place, svg)
    said = capsys.readouterr().out
    assert "1 GiB holds 9,362 tokens" in said and "batch 256: matrices 305.14 GFLOP" in said, said
    assert len(re.findall(r"batch +[12]: at most [\d.]+ tokens/s, measured [\d.]+", said)) == 2, said
    assert svg.read_text().count("<circle") == 2, "the picture has a point for each measured batch"
    assert list(place.iterdir()) == [], "the generated checkpoint was left behind"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
