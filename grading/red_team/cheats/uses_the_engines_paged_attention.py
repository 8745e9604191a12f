"""Has the engine's paged attention do a batch, and its model runner lay it out.

lab = "07"
base = "solution"
worth = 73
todos = [5]
"""

import importlib


def batch_attention(q, k_cache, v_cache, query_starts, seq_lens, block_tables):
    engine = importlib.import_module("nano_qwen3_" + "serving.attention.torch_paged")
    from nano_qwen3_serving.config import ModelConfig

    heads, dim = q.shape[1:]
    config = ModelConfig(vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=heads,
                         num_key_value_heads=k_cache.shape[2], head_dim=dim, max_position_embeddings=1024)
    lens = [after - before for before, after in itertools.pairwise(query_starts)]
    metadata = AttentionMetadata(query_lens=lens, seq_lens=list(seq_lens), slot_mapping=torch.zeros(len(q), dtype=torch.long),
                                 block_tables=block_tables, num_decodes=sum(one == 1 for one in lens), block_size=k_cache.shape[1])
    attention = engine.TorchPagedAttention(config, k_cache.shape[1], q.dtype, q.device)
    return attention.forward(q, (k_cache, v_cache), metadata)
