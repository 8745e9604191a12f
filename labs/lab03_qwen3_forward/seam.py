"""How the engine uses Lab 03's network: functions named after the fields of `Components`.

The first argument is the lab's module, `starter.py` or another; the others are the engine's.
"""

from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.loader import load_weights


def model(lab, config, attention):
    """`Components.model`: the lab's Qwen3 around the engine's attention, filled with the checkpoint."""
    if config.model.rope_scaling is not None:  # the lab computes its angles from rope_theta alone
        raise ModelLoadError(
            f"{config.model_path} stretches its rotary angles (YaRN, factor={config.model.rope_scaling.factor:g}), which Lab "
            "03's network does not compute; give a checkpoint without YaRN, or leave this part to the reference network")
    network = lab.Qwen3ForCausalLM(config.model, attention)
    return load_weights(network, config).to(config.device)  # .to(): what a learner computed at construction, if anything
