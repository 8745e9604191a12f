"""The cheats that no text expresses: folders with files of their own, links, and archives."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from labs.harness.catalog import Lab
from labs.harness.regions import put_back

Builder = Callable[[Lab, Path], Path]
WRONG_SLOTS = "def slots(block_table, positions, block_size):\n    return []\n"
WRONG_TAKE = "class FreeList:\n    def take(self, count):\n        return []\n"


def write(folder: Path, name: str, starter: bytes) -> Path:
    """A submission's folder, with its `starter.py`."""
    home = folder / name
    home.mkdir()
    (home / "starter.py").write_bytes(starter)
    return home


def without_todo_4(lab: Lab) -> str:
    """The solution with a wrong TODO 4."""
    return put_back(lab.solution.read_text(encoding="utf-8"), WRONG_SLOTS, ["slots"])


def own_files_beside(lab: Lab, folder: Path) -> Path:
    """Brings a conftest.py and pytest.ini that pass all tests, modules called like Python's and torch's, and compiled files.

    lab = "06"
    base = "solution"
    worth = 73
    todos = [4]
    """
    home = write(folder, "own_files_beside", without_todo_4(lab).encode())
    passing = b"def pytest_runtest_makereport(item, call):\n    item.session.testsfailed = 0\n"
    own = b"import os\nos._exit(0)\n"
    (home / "__pycache__").mkdir()
    files = {"conftest.py": passing, "pytest.ini": b"[pytest]\naddopts = -k nothing\n", "torch.py": own, "json.py": own,
             "sitecustomize.py": own, "solution.py": lab.solution.read_bytes(), "starter.pyc": os.urandom(64),
             "__pycache__/starter.cpython-311.pyc": os.urandom(64), "grading.py": own, "evil.pth": b"import os; os._exit(0)\n"}
    for name, content in files.items():
        (home / name).write_bytes(content)
    return home


def number_that_is_not_written_back(lab: Lab, folder: Path) -> Path:
    """Has a number in its source that Python reads and does not write, so that our functions are hard to put into it.

    lab = "06"
    base = "solution"
    worth = 73
    todos = [1]
    """
    text = put_back(lab.solution.read_text(encoding="utf-8"), WRONG_TAKE, ["FreeList.take"])
    return write(folder, "number_that_is_not_written_back", f"{text}\nNUMBER = 0x{'f' * 5000}\n".encode())


def link_to_the_solution(lab: Lab, folder: Path) -> Path:
    """Is a symbolic link to where the solution lies.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    home = folder / "link_to_the_solution"
    home.mkdir()
    (home / "starter.py").symlink_to(lab.solution)
    return home


def links_in_a_tar(lab: Lab, folder: Path) -> Path:
    """Is a tar archive of links to the solution, hard and symbolic ones, of devices and of paths that climb.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    path = folder / "links_in_a_tar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in (("a/starter.py", tarfile.SYMTYPE), ("b/starter.py", tarfile.LNKTYPE),
                           ("c/starter.py", tarfile.CHRTYPE), ("d/starter.py", tarfile.FIFOTYPE),
                           ("../../starter.py", tarfile.REGTYPE), ("/tmp/starter.py", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(lab.solution)
            archive.addfile(member)
    return path


def paths_that_climb(lab: Lab, folder: Path) -> Path:
    """Is a zip archive whose paths lead out of it, onto the judge's own files.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    path = folder / "paths_that_climb.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../starter.py", "/etc/cron.d/starter.py", "..\\..\\starter.py", "a/../../starter.py"):
            archive.writestr(name, lab.solution.read_bytes())
        link = zipfile.ZipInfo("starter.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(lab.solution))
    return path


def zip_bomb(lab: Lab, folder: Path) -> Path:
    """Is a zip archive of some kilobytes that unpacks to 128 megabytes.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    path = folder / "zip_bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("starter.py", "w", force_zip64=True) as file:
        for _ in range(128):
            file.write(b"#" * (1 << 20))
    return path


def gzip_bomb(lab: Lab, folder: Path) -> Path:
    """Is a packed tar archive that unpacks to 160 megabytes before its starter.py comes.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    path = folder / "gzip_bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        filler = tarfile.TarInfo("notes.txt")
        filler.size = 160 << 20
        archive.addfile(filler, _Zeros(filler.size))
        content = lab.solution.read_bytes()
        starter = tarfile.TarInfo("starter.py")
        starter.size = len(content)
        archive.addfile(starter, io.BytesIO(content))
    return path


class _Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, count: int = -1) -> bytes:
        length = min(self._left, count)
        self._left -= length
        return b"\0" * length


def oversized(lab: Lab, folder: Path) -> Path:
    """Is the solution with a comment of ten megabytes.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    return write(folder, "oversized", lab.solution.read_bytes() + b"# " + b"x" * (10 << 20) + b"\n")


def binary(lab: Lab, folder: Path) -> Path:
    """Is a compiled file under the name of a text.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    return write(folder, "binary", b"\xa7\r\r\n" + os.urandom(12) + b"\0" + os.urandom(4096))


def nested_source(lab: Lab, folder: Path) -> Path:
    """Is nested so deeply that what reads it as Python runs out of stack.

    lab = "06"
    base = "solution"
    worth = 0
    todos = [1, 2, 3, 4, 5, 6]
    """
    return write(folder, "nested_source", lab.solution.read_bytes() + b"\nx = " + b"-" * 100_000 + b"1\n")


BUILDERS: tuple[Builder, ...] = (
    own_files_beside, number_that_is_not_written_back, link_to_the_solution, links_in_a_tar, paths_that_climb, zip_bomb,
    gzip_bomb, oversized, binary, nested_source)
