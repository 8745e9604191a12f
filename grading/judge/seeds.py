"""The seeds of the checks' inputs: each hand-in has its own, so a changed file gets other inputs."""

import hashlib
import hmac
import random
from pathlib import Path

PUBLIC_SECRET = "no term secret"
"""The secret if an instructor sets none: then anyone can work out the inputs."""


def read_secret(path: Path | None) -> str:
    """The term secret in a file of at least 16 characters. Raises `ValueError` that names the file."""
    if path is None:
        return PUBLIC_SECRET
    secret = path.read_text(encoding="utf-8").strip()
    if len(secret) < 16:
        raise ValueError(
            f"{path} has {len(secret)} characters; a term secret has 16 or more. One is made by: "
            'python -c "import secrets; print(secrets.token_hex(16))"')
    return secret


def seed_for(secret: str, lab_id: str, student: str, digest: str, mode: str = "student") -> str:
    """HMAC-SHA256 of lab, student and hand-in under the term secret, 16 hex digits.

    The inputs that a report reveals are of no use for the next file, and the same file gets the same score. With mode
    `cohort` every student always has the same inputs.
    """
    owner = f"{student}/{digest}" if mode == "student" else ""
    return hmac.new(secret.encode(), f"{lab_id}/{owner}".encode(), hashlib.sha256).hexdigest()[:16]


def rng_for(seed: str, check: str) -> random.Random:
    """The random numbers of one check, which do not depend on what other checks draw."""
    return random.Random(f"{seed}/{check}")
