"""The process in which submissions run: it imports torch once, then forks for every check.

    python -I -B -S main.py CONTROL SITE RUNTIME

CONTROL is the number of the socket on which the judge says `{"fork": limits}` and passes two
descriptors, one for the wire, one for what is printed, and `{"end": true}`. This process itself never
imports a submission. Where forking is not safe (macOS) it serves a single check and is started anew.
"""

import json
import os
import signal
import socket
import sys
import time


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _use(site=sys.argv[2], runtime=sys.argv[3], hidden=sys.argv[4].split(",") if sys.argv[4] else [])
    _be_nobodys_target()
    import_ahead()
    control.sendall(b'{"ready": true}\n')
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
        if not data:
            return
        order = json.loads(data)
        if "fork" in order:
            child = os.fork()
            if child == 0:
                control.close()
                run_one(order["fork"], *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            control.sendall(b'{"started": true}\n')
        else:
            control.sendall(json.dumps(_end_all(child)).encode() + b"\n")


def _use(site: str, runtime: str, hidden: list[str]) -> None:
    """Modules come from the runtime, and from `site`, but for the `hidden` ones there."""
    sys.path[:0] = [runtime]
    hidden = [name for name in hidden if not os.path.exists(os.path.join(runtime, name))]
    sys.path.append(site)

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in hidden:
                raise ModuleNotFoundError(f"No module named {name!r} where submissions are graded", name=name)

    sys.meta_path.insert(0, Hidden())


def import_ahead() -> None:
    """What the children need, without a thread: only the one that forks goes on in a child."""
    import torch

    torch.set_num_threads(1)
    import nano_qwen3_serving
    from labs.harness import todo  # noqa: F401
    from worker import bench, peer  # noqa: F401

    for name in nano_qwen3_serving.__all__:
        try:
            getattr(nano_qwen3_serving, name)
        except ImportError:  # it needs what the lab leaves out
            pass


def run_one(limits: dict, wire: int, output: int) -> None:
    """In the child: be limited, serve the judge until it hangs up, and be gone."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor in (output, null):
        os.close(descriptor)
    os.chdir(limits["folder"])
    _limit(limits)
    from worker.bench import Bench
    from worker.peer import Peer

    home = os.path.join(limits["folder"], "starter.py")
    peer = Peer(socket.socket(fileno=wire), root=Bench(home), trusting=True, home=home)
    try:
        peer.serve()
    finally:
        os._exit(0)


def _limit(limits: dict) -> None:
    """CPU seconds, bytes of a file, processes, open files, no core dump."""
    import resource

    wanted = {"RLIMIT_CPU": limits["cpu_seconds"], "RLIMIT_FSIZE": limits["file_bytes"], "RLIMIT_NPROC": limits["processes"],
              "RLIMIT_NOFILE": limits["open_files"], "RLIMIT_CORE": 0}
    for name, value in wanted.items():
        if value is not None and hasattr(resource, name):
            try:
                hard = value + 2 if name == "RLIMIT_CPU" else value  # first a signal, then the end
                resource.setrlimit(getattr(resource, name), (value, hard))
            except (ValueError, OSError):  # the machine's own limit is lower
                pass


def _be_nobodys_target() -> None:
    """On Linux: orphans become ours, and a child cannot look into this process."""
    if sys.platform == "linux":
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _end_all(child: int) -> dict:
    """Kill the child and whatever it started; say how it ended."""
    import resource

    status, deadline = None, time.monotonic() + 2
    while time.monotonic() < deadline:
        for pid in _descendants(child):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == child:
            status = found
        if pid == 0:
            time.sleep(0.001)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"ended": status, "cpu_seconds": used.ru_utime + used.ru_stime}


def _descendants(child: int) -> list[int]:
    """The child, and every process that has become ours or is in its group."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listed:
            mine = [int(pid) for pid in listed.read().split()]
    except OSError:
        mine = [child]
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
    return mine


if __name__ == "__main__":
    main()
