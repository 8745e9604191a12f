"""Exported files: named after students, whatever characters their names have, and written whole or not at all."""

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from nano_qwen3_serving.observe.files import write_atomically


def write(path: Path, data: bytes) -> None:
    """Writes bytes to a file that only its owner can read, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of files, by name; the same files make the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()


def file_name(student: str, lab: str, ending: str) -> str:
    """`lab06-ada.json`. A name that cannot be a file's is changed and gets a digest, so that two names give two files."""
    name = re.sub(r"[^A-Za-z0-9@+._-]+", "_", student).lstrip(".")
    if name != student or len(name) > 80 or name.lower() != name:
        name = f"{name[:80]}-{hashlib.sha256(student.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"lab{lab}-{name}.{ending}"
