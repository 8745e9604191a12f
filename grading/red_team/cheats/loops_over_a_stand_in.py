"""Leaves TODO 3 unsolved, and has our code for it, called once for each row, do TODO 4.

lab = "07"
base = "solution"
worth = 52
todos = [3, 4]
"""


def gather(cache, block_table, num_tokens):
    raise TodoError("TODO 3: fetch the request's blocks, join them, cut off what is not written yet", lab="07")


def decode_attention(q, k_cache, v_cache, block_table, seq_len):
    raise TodoError("TODO 3: weigh the request's values", lab="07")


def chunk_attention(q, k_cache, v_cache, block_table, num_computed_tokens):
    return torch.stack([decode_attention(row, k_cache, v_cache, block_table, num_computed_tokens + i + 1)
                        for i, row in enumerate(q)])


from labs.harness.todo import TodoError
