"""What must hold after every `schedule()` and after every step, whoever wrote the parts.

Knows the interfaces only, so it judges a learner's scheduler and block manager like the reference's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, BlockManager, ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.request import Request


def check_schedule(
    batch: ScheduledBatch, running: Sequence[Request], block_manager: BlockManager, config: SchedulerConfig
) -> None:
    """Raises AssertionError if the batch breaks a bound, or block tables do not fit it.

    To be called before the batch is computed: then the tokens of a request are the computed ones
    and, after them, those of its chunk.
    """
    assert batch.num_tokens <= config.max_num_batched_tokens, (
        f"{batch.num_tokens} tokens in a step of at most {config.max_num_batched_tokens}")
    assert len(running) <= config.max_num_seqs, f"{len(running)} requests run, max_num_seqs is {config.max_num_seqs}"
    chunks = {chunk.request.request_id: chunk for chunk in batch.chunks}
    assert len(chunks) == len(batch.chunks), "a request is twice in the batch"
    not_running = set(chunks) - {request.request_id for request in running}
    assert not not_running, f"scheduled, and not running: {not_running}"
    tables = {request.request_id: block_manager.block_table(request.request_id) for request in running}
    for request in running:
        check_coverage(request, tables[request.request_id], chunks.get(request.request_id), block_manager.block_size,
                       config.num_speculative_tokens)
    check_written_blocks(batch, tables, block_manager.block_size)


def check_coverage(
    request: Request, table: Sequence[int], chunk: ScheduledChunk | None, block_size: int, num_drafts: int = 0
) -> None:
    """The block table covers what is computed and what will be, and has no surplus block.

    Blocks of drafts that were turned down stay, because the next tokens will need them: a request may have blocks for
    `num_drafts` tokens, a step's most, beyond the ones it knows.
    """
    name, tokens = request.request_id, request.num_computed_tokens
    if chunk is not None:
        assert chunk.start == tokens, f"{name}: the chunk starts at {chunk.start}, {tokens} tokens are computed"
        known = chunk.num_tokens - chunk.num_drafts
        assert 0 < known <= request.num_uncomputed_tokens, f"{name}: a chunk of {known} tokens"
        assert chunk.samples or not chunk.num_drafts, f"{name}: drafts after a token that is not its last"
        assert chunk.block_table == table, f"{name}: the chunk has the blocks {chunk.block_table}, its table is {table}"
        tokens = chunk.end
        num_drafts -= chunk.num_drafts
    least, most = (-(-count // block_size) for count in (tokens, tokens + num_drafts))
    assert least <= len(table) <= most, f"{name}: {len(table)} blocks of {block_size} for {tokens} tokens"


def check_written_blocks(batch: ScheduledBatch, tables: dict[str, Sequence[int]], block_size: int) -> None:
    """Every block that is written is in one block table, once.

    So no slot is written twice, nor one that another request reads: a shared block is full.
    """
    held = Counter(block for table in tables.values() for block in table)
    for chunk in batch.chunks:
        written = chunk.block_table[chunk.start // block_size : -(-chunk.end // block_size)]
        assert NULL_BLOCK not in written, f"{chunk.request.request_id} writes to the null block"
        shared = [block for block in written if held[block] != 1]
        assert not shared, f"{chunk.request.request_id} writes to blocks that others hold too: {shared}"


def check_pool(block_manager: BlockManager, num_blocks: int, idle: bool) -> None:
    """Raises AssertionError if the pool of `num_blocks` blocks is inconsistent, or if an idle engine lost one."""
    block_manager.check_integrity()
    if idle:
        free = block_manager.num_free_blocks
        assert free == num_blocks - 1, f"idle, and only {free} blocks are free"
