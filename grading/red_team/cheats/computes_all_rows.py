"""Multiplies all rows with the head's weight, without calling the head.

lab = "03"
base = "solution"
worth = 83
todos = [6]
"""


class Qwen3ForCausalLM:
    def last_logits(self, token_ids, positions, cache, metadata):
        hidden = self(token_ids, positions, cache, metadata)
        logits = F.linear(self.model.norm(hidden), self.lm_head.weight)
        ends = torch.tensor(metadata.query_lens).cumsum(0) - 1
        return logits[ends]
