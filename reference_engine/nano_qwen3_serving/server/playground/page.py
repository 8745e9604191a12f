"""The playground as one HTML page: served beside an engine, or with a recorded trace in it.

Knows `index.html`, and what a page that plays records must know besides them; knows nothing of HTTP. The page loads
nothing from anywhere. Its content security policy is written into it: one style and one script, known by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from nano_qwen3_serving.config import EngineConfig

TRACE = '<script type="application/json" id="recorded">null</script>'
POLICY = "<!-- policy -->"


def playground_page(
    steps: Sequence[Mapping[str, Any]] | None = None, header: Mapping[str, Any] | None = None, *, title: str = "", start: int = 0
) -> str:
    """The page, complete in itself. In a notebook it goes into the `srcdoc` of an iframe.

    Args:
        steps: records of `Recorder.steps` or `LiveSteps.steps`, which the page plays. None makes the page that a server
            hands out: it asks that server for its steps, and chats with it.
        header: what the records do not say, as `engine_header` gives it. Without it the page infers the size of the pool
            from the records, and says nothing of the size of a block.
        title: of the trace.
        start: the place in `steps` that is shown first.
    """
    page = files(__package__).joinpath("index.html").read_text(encoding="utf-8")
    if steps is not None:
        trace = {"header": dict(header or {}), "steps": list(steps), "title": title, "start": start}
        page = page.replace(TRACE, TRACE.replace("null", in_script(trace)))
    return page.replace(POLICY, f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy(page)}">')


def engine_header(config: EngineConfig, model: str) -> dict[str, Any]:
    """What a page that plays an engine's records must know of the engine.

    Args:
        config: of the engine.
        model: its name, as callers of the server know it.
    """
    return {
        "model": model, "block_size": config.cache.block_size, "num_blocks": config.cache.num_blocks,
        "max_num_seqs": config.scheduler.max_num_seqs, "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "max_model_len": config.scheduler.max_model_len}


def content_security_policy(page: str) -> str:
    """The policy under which a page's own style and script run, and nothing else; it speaks to its own server only."""
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    return (f"default-src 'none'; style-src {hash_of(style)}; script-src {hash_of(script)}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'")


def hash_of(source: str) -> str:
    """A source as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def in_script(value: Any) -> str:
    """A value as JSON that can stand in a script element: no text in it ends the element or begins a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
