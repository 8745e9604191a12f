"""What a process gives up for good before a submission runs in it: files, other processes, the network.

Linux only, and without privileges: Landlock for files, TCP and signals, seccomp for system calls
that reach other processes, the network, or memory that no watchdog sees. A mechanism that a machine lacks is
left out: run as a program, this file tries out and prints which ones work. Knows nothing of checks or
submissions.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable, Iterator

ACCESS_BY_VERSION = ((1, 13), (2, 14), (3, 15), (5, 16))
"""From which version of Landlock how many kinds of access to files there are."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG  # no devices, no links
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
TCP, SIGNALS_AND_SOCKETS = 0b11, 0b11
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # system calls, of every architecture
GET_VERSION, PATH_BENEATH = 1, 1
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
"""Of prctl(2)."""
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of the kernel's packet filter."""
REFUSE_WITH_EPERM, ALLOW = 0x00050001, 0x7FFF0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
"""Their offsets, in bytes, in the data that a filter gets about a call."""
X32_CALLS = 0x40000000
"""Calls of another numbering begin there; x86_64 takes them, too."""
F_SETOWN, F_SETOWN_EX = 8, 15

NEVER, OWN, OWN_OR_NONE = "never", "own", "own or none"
CALLS: dict[str, tuple[int | None, int | None, str]] = {  # x86_64, aarch64, whether it may be called for this process itself
    "kill": (62, 129, OWN), "tgkill": (234, 131, OWN), "tkill": (200, 130, NEVER),
    "rt_sigqueueinfo": (129, 138, OWN), "rt_tgsigqueueinfo": (297, 240, OWN), "pidfd_open": (434, 434, NEVER),
    "pidfd_send_signal": (424, 424, NEVER), "pidfd_getfd": (438, 438, NEVER), "ptrace": (101, 117, NEVER),
    "process_vm_readv": (310, 270, NEVER), "process_vm_writev": (311, 271, NEVER), "prlimit64": (302, 261, OWN_OR_NONE),
    "sched_setaffinity": (203, 122, OWN_OR_NONE), "setpriority": (141, 140, NEVER), "ioprio_set": (251, 30, NEVER),
    "socket": (41, 198, NEVER), "io_uring_setup": (425, 425, NEVER), "memfd_create": (319, 279, NEVER),
    "memfd_secret": (447, 447, NEVER), "shmget": (29, 194, NEVER), "semget": (64, 190, NEVER), "msgget": (68, 186, NEVER),
    "mq_open": (240, 180, NEVER), "add_key": (248, 217, NEVER), "keyctl": (250, 219, NEVER), "bpf": (321, 280, NEVER),
    "perf_event_open": (298, 241, NEVER), "userfaultfd": (323, 282, NEVER), "unshare": (272, 97, NEVER),
    "setns": (308, 268, NEVER), "mount": (165, 40, NEVER), "open_by_handle_at": (304, 265, NEVER),
    # marks on files that a later check could find
    "setxattr": (188, 5, NEVER), "lsetxattr": (189, 6, NEVER), "fsetxattr": (190, 7, NEVER), "setxattrat": (463, 463, NEVER),
    "chmod": (90, None, NEVER), "fchmod": (91, 52, NEVER), "fchmodat": (268, 53, NEVER), "fchmodat2": (452, 452, NEVER),
    "utime": (132, None, NEVER), "utimes": (235, None, NEVER), "futimesat": (261, None, NEVER), "utimensat": (280, 88, NEVER),
    "chown": (92, None, NEVER), "fchown": (93, 55, NEVER), "lchown": (94, None, NEVER), "fchownat": (260, 54, NEVER),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 72), "aarch64": (1, 0xC00000B7, 25)}
"""Column in `CALLS`, how seccomp names it, and the number of fcntl."""


class Confinement:
    """The files, calls and network that a process may still use. Made once; each child enters it for good.

    Args:
        landlock: the version of Landlock, 0 without it.
        filters: whether system calls can be filtered.
        readable, writable: files and folders; missing ones are ignored.
        hidden: folders below them that must not be read.

    Raises:
        OSError: the kernel refuses.
    """

    def __init__(
        self, landlock: int, filters: bool, readable: Iterable[str], writable: Iterable[str], hidden: Iterable[str]
    ) -> None:
        there = {os.path.realpath(path) for path in hidden if os.path.exists(path)}
        self._rules = _rules(landlock, readable, writable, there) if landlock else None
        self._filters = filters

    def enter(self) -> None:
        """Give up, for this process and those that come from it, all other files, other processes, and the network."""
        libc = _libc()
        if self._rules is not None or self._filters:
            _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
        if self._rules is not None:
            _checked(libc.syscall(LANDLOCK_RESTRICT_SELF, self._rules, 0), "Landlock")
            os.close(self._rules)
        if self._filters:
            _filter_calls()


def available_confinement() -> tuple[int, bool]:
    """The version of Landlock, 0 without it (4 keeps from TCP, 6 from others' processes), and whether calls can be filtered.

    Trying it out confines this process for good: call it only in a process that does nothing else.
    """
    if sys.platform != "linux":
        return 0, False
    landlock = max(0, _libc().syscall(LANDLOCK_CREATE_RULESET, None, 0, GET_VERSION))
    usable = []
    for version, filters in ((landlock, False), (0, platform.machine() in ARCHITECTURES)):
        try:
            Confinement(version, filters, ["/"], ["/"], []).enter()
            usable.append(version or filters)
        except OSError:
            usable.append(0)
    return usable[0], bool(usable[1])


def ends_with_its_parent() -> None:
    """On Linux: this process is killed when the one that started it is gone."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def without_rights() -> None:
    """Give up root's privileges, as far as that is possible."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            _set_capabilities(_libc(), effective=0, permitted=0)


def become(user: int, must_read: Iterable[str]) -> None:
    """Change from root to another user; keeps root's right to read if one of `must_read` cannot be read otherwise.

    Raises:
        OSError: one of `must_read` cannot be read even so.
    """
    libc, paths = _libc(), list(must_read)
    _checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    for kept in (0, CAP_DAC_READ_SEARCH):
        with contextlib.suppress(OSError):
            _set_capabilities(libc, effective=kept, permitted=CAP_DAC_READ_SEARCH)  # without the right to it, nothing changes
        if all(map(_opens, paths)):
            break
    else:
        raise OSError(f"user {user} cannot read {', '.join(paths)}")
    _set_capabilities(libc, effective=kept, permitted=kept)


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _set_capabilities(libc: ctypes.CDLL, effective: int, permitted: int) -> None:
    header, both = struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", effective, permitted, 0, 0, 0, 0)
    _checked(libc.capset(header, both), "capabilities")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


# files: Landlock


def _rules(version: int, readable: Iterable[str], writable: Iterable[str], hidden: set[str]) -> int:
    """The descriptor of a set of rules."""
    libc = _libc()
    files = (1 << max(count for since, count in ACCESS_BY_VERSION if version >= since)) - 1
    attributes = struct.pack("QQQ", files, TCP, SIGNALS_AND_SOCKETS)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _checked(libc.syscall(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0), "Landlock")
    for path, access in [*_below(readable, hidden, READ), *((path, WRITE) for path in writable)]:
        _allow(libc, rules, path, access & files)
    return rules


def _below(paths: Iterable[str], hidden: set[str], access: int) -> Iterator[tuple[str, int]]:
    """The paths; a folder with something hidden below it is replaced by its other entries and its list of names."""
    for path in map(os.path.realpath, paths):
        if path in hidden:
            continue
        if os.path.isdir(path) and any(hidden_path.startswith(path + os.sep) for hidden_path in hidden):
            yield path, READ_DIR
            yield from _below((os.path.join(path, name) for name in os.listdir(path)), hidden, access)
        else:
            yield path, access


def _allow(libc: ctypes.CDLL, rules: int, path: str, access: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rule = struct.pack("=Qi", access if os.path.isdir(path) else access & OF_A_FILE, opened)
    _checked(libc.syscall(LANDLOCK_ADD_RULE, rules, PATH_BENEATH, rule, 0), f"Landlock, {path}")
    os.close(opened)


# system calls: seccomp


def _filter_calls() -> None:
    libc, program = _libc(), _program(*ARCHITECTURES[platform.machine()])
    kept = ctypes.create_string_buffer(program)
    sock_fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(kept))
    _checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, sock_fprog, 0, 0), "seccomp")


def _program(column: int, architecture: int, fcntl: int) -> bytes:
    """Instructions of the kernel's packet filter: a refused call gets EPERM."""
    refused, allowed, own = _do(RETURN, REFUSE_WITH_EPERM), _do(RETURN, ALLOW), os.getpid()
    lines = [_load(ARCHITECTURE), _do(JUMP_IF_EQUAL, architecture, 1, 0), refused]
    lines += [_load(NUMBER), _do(JUMP_IF_AT_LEAST, X32_CALLS, 0, 1), refused]
    for x86_64, aarch64, when in CALLS.values():
        lines += _for_call((x86_64, aarch64)[column], when, own, refused, allowed)
    lines += [_do(JUMP_IF_EQUAL, fcntl, 0, 5), _load(SECOND_ARGUMENT), _do(JUMP_IF_EQUAL, F_SETOWN, 1, 0),
              _do(JUMP_IF_EQUAL, F_SETOWN_EX, 0, 1), refused, allowed]
    return b"".join([*lines, allowed])


def _for_call(number: int | None, when: str, own: int, refused: bytes, allowed: bytes) -> list[bytes]:
    if number is None:  # a call that this processor's kernel does not have
        return []
    if when == NEVER:
        return [_do(JUMP_IF_EQUAL, number, 0, 1), refused]
    none = own if when == OWN else 0
    return [_do(JUMP_IF_EQUAL, number, 0, 5), _load(FIRST_ARGUMENT), _do(JUMP_IF_EQUAL, own, 2, 0),
            _do(JUMP_IF_EQUAL, none, 1, 0), refused, allowed]


def _load(offset: int) -> bytes:
    """Loads four bytes of the data about the call."""
    return _do(LOAD_WORD, offset)


def _do(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


if __name__ == "__main__":
    if sys.argv[1:]:
        become(int(sys.argv[1]), sys.argv[2:])
    else:
        print(*map(int, available_confinement()))
