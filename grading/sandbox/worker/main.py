"""The process in which submissions run: it imports torch once, then forks for every check.

    python -I -B -S main.py CONTROL SITE RUNTIME LIBRARIES REFUSED

CONTROL is the number of the socket on which the judge says `{"fork": limits}` and passes two
descriptors, one for the wire, one for what is printed, and `{"end": true}`. This process itself never
imports a submission, and keeps its privileges; a child gives up all that it can. Where forking is
not safe (macOS), the process serves a single check and is started anew.
"""

import contextlib
import importlib.machinery
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from typing import Any


def main() -> None:
    """Carries out the judge's orders until the judge hangs up."""
    control, (site, runtime), libraries = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:4], sys.argv[4].split(",")
    _use(site, runtime, libraries, sys.argv[5].split(","))
    _adopt_orphans_and_hide()
    import_ahead()
    control.sendall(b'{"ready": true}\n')
    child, confinement = None, None
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
        if not data:
            _end_all(child)
            return
        order = json.loads(data)
        if "fork" in order:
            confinement = confinement or _confinement(order["fork"], site, runtime, libraries)
            child = os.fork()
            if child == 0:
                control.close()
                wire, output = descriptors
                run_one(order["fork"], wire, output, confinement)
            for descriptor in descriptors:
                os.close(descriptor)
            control.sendall(b'{"started": true}\n')
        else:
            control.sendall(json.dumps(_end_all(child)).encode() + b"\n")


def _use(site: str, runtime: str, libraries: list[str], refused: list[str]) -> None:
    """Modules come from the runtime, and of `site` only the `libraries`, without the modules of these that are `refused`."""
    sys.path[:0] = [runtime]
    sys.modules.update(dict.fromkeys(refused))  # type: ignore[arg-type]  # None: an import of it fails
    finder = importlib.machinery.PathFinder

    class Listed:
        def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
            return finder.find_spec(name, [site]) if path is None and name in libraries else None

        def find_distributions(self, context: Any = None) -> Any:
            return iter(())

    sys.meta_path.append(Listed())


def import_ahead() -> None:
    """Imports what the children need, without starting a thread: only the forking thread lives on in a child."""
    import torch

    torch.set_num_threads(1)
    torch.nn.utils.skip_init(torch.nn.Embedding, 1, 1)  # its first call imports modules for a second
    torch.manual_seed = torch.default_generator.manual_seed  # saves 2 ms of looking for accelerators that are not there
    torch.ones(1).half()  # torch asks for the processor once, in /proc, which children may not read
    from worker import bench, peer  # noqa: F401

    import nano_qwen3_serving
    from labs.harness import todo  # noqa: F401

    for name in nano_qwen3_serving.__all__:
        try:
            getattr(nano_qwen3_serving, name)
        except ImportError:  # it needs what the lab leaves out
            pass


def run_one(limits: dict, wire: int, output: int, confinement: Any) -> None:
    """In the child: set the limits, serve the judge until it hangs up, and exit."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor in (output, null):
        os.close(descriptor)
    _settle_in(limits["folder"])
    import torch
    from worker import confine
    from worker.bench import Bench
    from worker.peer import Peer

    home = os.path.join(limits["folder"], "starter.py")
    try:
        _limit(limits)
        if limits["user"] is not None:
            confine.become(limits["user"], must_read=[os.__file__, torch.__file__])
        elif limits["confined"]:
            confine.without_rights()
        confinement.enter()
        confine.ends_with_its_parent()
        Peer(socket.socket(fileno=wire), root=Bench(home), trusting=True, home=home).serve()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _settle_in(folder: str) -> None:
    """Puts home, temporary files and caches where a submission may write, and forgets paths that this process cached."""
    os.chdir(folder)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), folder))
    tempfile.tempdir = folder


def _confinement(limits: dict, site: str, runtime: str, libraries: list[str]) -> Any:
    """The confinement to the files of Python, of the libraries, of the runtime and of the submission."""
    from worker.confine import Confinement

    places = [f"{sys.base_prefix}/lib", "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"]
    devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    unseen = [os.path.join(site, name) for name in os.listdir(site) if name.split(".")[0] not in libraries]
    landlock, filters = limits["confined"] or (0, False)
    return Confinement(landlock, filters, [runtime, site, *places, *devices], [limits["folders"], "/dev/null"],
                       [*unseen, *limits["unseen"]])


def _limit(limits: dict) -> None:
    """Limits CPU seconds, file sizes, processes, open files and core dumps; out of memory, the kernel ends this process first."""
    import resource

    others = _tasks() if limits["user"] is None else 0  # the kernel counts all processes of the user
    wanted = {"RLIMIT_CPU": limits["cpu_seconds"], "RLIMIT_FSIZE": limits["file_bytes"],
              "RLIMIT_NPROC": limits["processes"] + others, "RLIMIT_NOFILE": limits["open_files"], "RLIMIT_CORE": 0}
    for name, value in wanted.items():
        if value is not None and hasattr(resource, name):
            try:
                hard = value + 2 if name == "RLIMIT_CPU" else value  # first a signal, then the end
                resource.setrlimit(getattr(resource, name), (value, hard))
            except (ValueError, OSError):  # the machine's own limit is lower
                pass
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _tasks() -> int:
    """How many processes and threads this machine has, if it says so."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].split("/")[1])
    except (OSError, ValueError, IndexError):
        return 4096


def _adopt_orphans_and_hide() -> None:
    """On Linux: orphans become ours, and a child cannot look into this process."""
    if sys.platform == "linux":
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _end_all(child: int | None) -> dict:
    """Kill the child and everything it started; report how it ended, and whether a process is left."""
    import resource

    status, left, deadline = None, True, time.monotonic() + 2
    while time.monotonic() < deadline:
        for pid in _descendants(child):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            left = False
            break
        if pid == child:
            status = ended
        if pid == 0:
            time.sleep(0.001)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"ended": status, "left": left, "cpu_seconds": used.ru_utime + used.ru_stime}


def _descendants(child: int | None) -> list[int]:
    """Every process that descends from this one, whatever its parent is now; outside Linux, the child and its group."""
    if not os.path.isdir("/proc/self/task"):
        if child is None:
            return []
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        return [child]
    descendants, pending = [], [os.getpid()]
    while pending:
        with contextlib.suppress(OSError):
            parent = pending.pop()
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as listed:
                    children = [int(pid) for pid in listed.read().split()]
                descendants += children
                pending += children
    return descendants


if __name__ == "__main__":
    main()
