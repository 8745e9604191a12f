"""The batch's workers on an existing Ray cluster: one actor each, for the same loop as processes.

Every machine of the cluster has this course installed, in the same version: results of other versions are
refused. A lost worker costs its submission a retry on another one.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from grading.cohort.worker_pool import Crashed, Crew, Failed, Make, answer_of

READY_SECONDS = 1.0
PROBE_SECONDS = 10.0


class Actor:
    """A worker that is a Ray actor.

    Args:
        remote: what `ray.remote` made of `_Grading`.
    """

    def __init__(self, ray: Any, remote: Any, make: Make) -> None:
        self._ray, self._why = ray, ""
        self._actor = remote.remote(make)
        self.answer: Any = None

    def give(self, unit: Any) -> None:
        self.answer = self._actor.grade.remote(unit)

    def take(self) -> Any:
        try:
            return self._ray.get(self.answer)
        except self._ray.exceptions.RayActorError as error:
            raise Crashed(self._why or f"its Ray worker is gone: {_first_line(error)}") from None
        except self._ray.exceptions.RayError as error:
            return Failed(f"Ray: {_first_line(error)}")

    def stop(self, why: str = "") -> None:
        self._why = self._why or why
        self._ray.kill(self._actor, no_restart=True)


class _Grading:
    """In the actor's process: the function that `make` returns grades one unit after another."""

    def __init__(self, make: Make) -> None:
        self._open = make()
        self._grade = self._open.__enter__()

    def grade(self, unit: Any) -> Any:
        return answer_of(self._grade, unit)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def cluster(address: str, make: Make, seconds: float, count: int | None = None) -> Iterator[Crew[Actor]]:
    """Workers of the cluster at `address`, one for each of its cores, or `count`; one core each.

    Raises:
        ValueError: if Ray is not installed, or there is no cluster.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        remote = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Grading)
        yield Crew(count or max(1, int(ray.cluster_resources().get("CPU", 1))), lambda: Actor(ray, remote, make), _ready(ray),
                   seconds)
    finally:
        if mine:
            ray.shutdown()


def _ready(ray: Any) -> Callable[[Sequence[Actor]], list[Actor]]:
    def ready(workers: Sequence[Actor]) -> list[Actor]:
        there, _ = ray.wait([worker.answer for worker in workers], num_returns=1, timeout=READY_SECONDS)
        return [worker for worker in workers if worker.answer in there]

    return ready


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise ValueError("--ray needs Ray, which is not installed: pip install -e '.[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        _probe(address)
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"there is no Ray cluster at {address!r} that answers ({_first_line(error)}); ray start --head begins one on this "
            "machine; one with RAY_AUTH_MODE=token wants that set here, too, and its token as RAY_AUTH_TOKEN") from None


def _probe(address: str) -> None:
    """Raise `OSError` if no server listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
