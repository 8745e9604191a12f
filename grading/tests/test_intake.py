"""What is handed in: the two allowed files are taken as they are, and all else is said in words and costs nothing."""

import io
import os
import random
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grading.judge import intake
from grading.judge.intake import MOST_BYTES, MOST_COPIES, MOST_ENTRIES, Submission, read_submission

pytestmark = pytest.mark.slow

GOOD = b"x = 1\n"


def folder_of(tmp_path: Path, **files: bytes) -> Path:
    home = tmp_path / "ada"
    for name, content in files.items():
        path = home / name.replace("__", "/").replace("_py", ".py").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return home


def noted(submission: Submission, words: str) -> bool:
    return any(words in note for note in submission.notes)


def refused(submission: Submission, words: str) -> None:
    """It has no starter.py, and a note says why."""
    assert submission.files.get("starter.py") is None and noted(submission, words), submission
    assert submission.text() is None and submission.digest


# what is taken


def test_a_folder_gives_its_two_files_and_names_the_others(tmp_path: Path):
    home = folder_of(tmp_path, starter_py=GOOD, predictions_json=b"{}", conftest_py=b"", torch_py=b"", x__solution_py=b"")
    (home / "pytest.ini").write_text("[pytest]")
    submission = read_submission(home)
    assert (submission.student, submission.files) == ("ada", {"starter.py": GOOD, "predictions.json": b"{}"})
    assert submission.notes == (
        "not taken: conftest.py, pytest.ini, torch.py, x/solution.py (only starter.py and predictions.json are)",)


@pytest.mark.parametrize("make", ["zip", "tar", "tar.gz", "tgz"])
def test_an_archive_gives_the_same_as_the_folder(tmp_path: Path, make: str):
    path = tmp_path / f"ada.{make}"
    files = {"work/starter.py": GOOD, "work/predictions.json": b"{}", "work/notes.txt": b"n"}
    if make == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w" if make == "tar" else "w:gz") as archive:
            for name, content in files.items():
                add(archive, name, content)
    submission = read_submission(path)
    assert (submission.student, submission.files) == ("ada", {"starter.py": GOOD, "predictions.json": b"{}"})


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    archive.addfile(member, io.BytesIO(content))


def test_a_file_by_itself_is_its_folders(tmp_path: Path):
    home = folder_of(tmp_path, starter_py=GOOD)
    assert read_submission(home / "starter.py").student == "ada"
    (tmp_path / "bob.py").write_bytes(GOOD)
    assert read_submission(tmp_path / "bob.py") == Submission("bob", {"starter.py": GOOD})


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path):
    assert read_submission(folder_of(tmp_path, starter_py=b"\xef\xbb\xbf" + GOOD)).text() == GOOD.decode()


def test_of_two_starters_the_one_nearer_the_top_is_taken_and_the_other_named(tmp_path: Path):
    submission = read_submission(folder_of(tmp_path, a__b__starter_py=b"far", z__starter_py=b"near"))
    assert submission.files == {"starter.py": b"near"}
    assert noted(submission, "a/b/starter.py is not taken: there is another starter.py nearer the top")


def test_of_several_labs_only_the_folder_asked_for_counts(tmp_path: Path):
    home = folder_of(tmp_path, lab05_x__starter_py=b"five", lab06_block_manager__starter_py=b"six")
    assert read_submission(home, lab_folder="lab06_block_manager").files == {"starter.py": b"six"}
    assert read_submission(home, lab_folder="lab07_x").files == {}


def test_the_digest_is_of_what_is_graded_and_of_nothing_else(tmp_path: Path):
    one = read_submission(folder_of(tmp_path / "1", starter_py=GOOD))
    other = read_submission(folder_of(tmp_path / "2", starter_py=GOOD, conftest_py=b"x"))
    changed = read_submission(folder_of(tmp_path / "3", starter_py=GOOD + b"\n"))
    assert one.digest == other.digest != changed.digest


# what is not


def test_what_is_missing_is_said(tmp_path: Path):
    refused(read_submission(folder_of(tmp_path, readme_py=b"")), "there is no starter.py to grade")
    refused(read_submission(tmp_path / "nobody"), "cannot be read: no such file or directory")
    (tmp_path / "empty").mkdir()
    refused(read_submission(tmp_path / "empty"), "empty is empty")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"x = 1\0\n", "binary"), (random.Random(0).randbytes(64) + b"\0", "binary"),
        ("x = 'ä'\n".encode("latin-1"), "line 1 is not text in UTF-8 (byte 5)"),
        ("x = 1\n".encode("utf-16"), "is text in UTF-16. Save it as UTF-8"),
        (b"# \xed\xa0\x80\n", "not text in UTF-8"), (b"#" * (MOST_BYTES + 1), "256 KiB are allowed"),
    ],
)  # fmt: skip
def test_a_starter_that_is_no_text_of_a_lab_is_not_taken(tmp_path: Path, content: bytes, words: str):
    refused(read_submission(folder_of(tmp_path, starter_py=content)), words)


def test_a_bad_predictions_file_does_not_cost_the_starter(tmp_path: Path):
    submission = read_submission(folder_of(tmp_path, starter_py=GOOD, predictions_json=b"\xff"))
    assert submission.files == {"starter.py": GOOD} and noted(submission, "predictions.json: it is not text in UTF-8")


def test_links_are_not_followed(tmp_path: Path):
    secret = tmp_path / "solution.py"
    secret.write_bytes(b"secret")
    home = tmp_path / "ada"
    home.mkdir()
    (home / "starter.py").symlink_to(secret)
    (home / "further").symlink_to(tmp_path)
    refused(read_submission(home), "symbolic link")
    (tmp_path / "bob").symlink_to(home)
    refused(read_submission(tmp_path / "bob"), "cannot be read: it is a symbolic link")


def test_a_named_pipe_holds_nobody_up(tmp_path: Path):
    home = tmp_path / "ada"
    home.mkdir()
    os.mkfifo(home / "starter.py")
    refused(read_submission(home), "it is no file")
    os.mkfifo(tmp_path / "bob.zip")
    refused(read_submission(tmp_path / "bob.zip"), "neither a file nor a folder")


def test_a_folder_called_starter_is_none(tmp_path: Path):
    (tmp_path / "ada" / "starter.py").mkdir(parents=True)
    (tmp_path / "ada" / "starter.py" / "x").touch()
    refused(read_submission(tmp_path / "ada"), "there is no starter.py")


CLIMBING = ["../starter.py", "../../etc/starter.py", "/tmp/starter.py", "a/../../starter.py", "..\\..\\starter.py"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("make", ["zip", "tar"])
def test_a_path_that_climbs_out_of_its_archive_is_not_taken(tmp_path: Path, name: str, make: str):
    path = tmp_path / f"ada.{make}"
    if make == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), GOOD)
    else:
        with tarfile.open(path, "w") as archive:
            add(archive, name, GOOD)
    before = set(tmp_path.rglob("*"))
    refused(read_submission(path), "climbs out of it")
    assert set(tmp_path.rglob("*")) == before, "nothing is unpacked"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_not_taken(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "ada.tar", "w") as archive:
        add(archive, "starter.py", kind=kind, link="/etc/passwd")
    refused(read_submission(tmp_path / "ada.tar"), "link")


def test_a_link_in_a_zip_is_not_taken(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "ada.zip", "w") as archive:
        link = zipfile.ZipInfo("starter.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(read_submission(tmp_path / "ada.zip"), "link")


def bomb_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("starter.py", "w") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))


def zip_that_lies_about_sizes(path: Path) -> None:
    """Its list says that the file has 10 bytes; a hundred megabytes come out."""
    bomb_in_zip(path)
    content = path.read_bytes()
    for size in ((200 << 20).to_bytes(4, "little"),):
        content = content.replace(size, (10).to_bytes(4, "little"))
    path.write_bytes(content)


def zip_of_a_long_list(path: Path) -> None:
    """A list of entries far longer than the files it lists."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("starter.py", GOOD)
    content = path.read_bytes()
    at = content.rfind(b"PK\5\6")
    path.write_bytes(content[:at] + content[at : at + 12] + (50 << 20).to_bytes(4, "little") + content[at + 16 :])


def zip_of_many_files(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(MOST_ENTRIES * 6):
            archive.writestr(zipfile.ZipInfo(f"{number}.txt"), b"")


def zip_of_many_starters(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(300):
            archive.writestr(f"{number}/starter.py", b"#" * MOST_BYTES)


def zip_in_a_strange_packing(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("starter.py", GOOD)


def encrypted_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("starter.py", GOOD)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(content))


def bomb_in_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "notes.txt", bytes(200 << 20))
        add(archive, "starter.py", GOOD)


def header_bomb_in_tar(path: Path) -> None:
    """A name that is two hundred megabytes long."""
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "x" * (200 << 20))


def damaged(path: Path) -> None:
    bomb_in_zip(path)
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.share(3)
@pytest.mark.parametrize(
    "build, ending, words",
    [
        (bomb_in_zip, "zip", "256 KiB are allowed"), (zip_that_lies_about_sizes, "zip", "cannot be read"),
        (zip_of_a_long_list, "zip", "more than 10000 files"), (zip_of_many_files, "zip", "more than 10000 files"),
        (zip_of_many_starters, "zip", f"more than {MOST_COPIES} files called starter.py"),
        (zip_in_a_strange_packing, "zip", "zip it anew"), (encrypted_zip, "zip", "encrypted"),
        (bomb_in_tar, "tar.gz", "more than 128 MiB in it"), (header_bomb_in_tar, "tgz", "more than 128 MiB in it"),
        (damaged, "zip", "no zip, tar or tar.gz archive"),
    ],
)  # fmt: skip
def test_a_strange_archive_costs_little_and_says_what_is_wrong(tmp_path: Path, build, ending: str, words: str):
    path = tmp_path / f"ada.{ending}"
    build(path)
    tracemalloc.start()
    try:
        submission = read_submission(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    refused(submission, words)
    assert peak < 300 << 20, f"it took {peak >> 20} MiB"


def test_a_file_without_a_name_in_a_zip_does_not_raise(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "ada.zip", "w") as archive:
        archive.writestr("Q", GOOD)
    (tmp_path / "ada.zip").write_bytes((tmp_path / "ada.zip").read_bytes().replace(b"Q", b"\0"))
    refused(read_submission(tmp_path / "ada.zip"), "cannot be read")


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_never_raise(tmp_path: Path, ending: str, data: st.DataObject):
    path = tmp_path / f"ada.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("starter.py", GOOD * 50)
            archive.writestr("a/predictions.json", b"{}")
    else:
        with tarfile.open(path, "w" if ending == "tar" else "w:gz") as archive:
            add(archive, "starter.py", GOOD * 50)
            add(archive, "x", kind=tarfile.SYMTYPE, link="starter.py")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content))
    submission = read_submission(path)
    assert submission.files or submission.notes


def test_names_that_are_no_utf_8_can_be_written_down(tmp_path: Path):
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ad\xe9"))
    home.mkdir()
    (home / os.fsdecode(b"caf\xe9.txt")).touch()
    submission = read_submission(home)
    assert submission.student == r"ad\xe9" and noted(submission, r"caf\xe9.txt")
    "".join((submission.student, *submission.notes)).encode()


def test_folders_without_end_are_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "MOST_ENTRIES", 50)
    for number in range(60):
        (tmp_path / "ada" / str(number)).mkdir(parents=True)
    refused(read_submission(tmp_path / "ada"), "more than 50 files and folders")
