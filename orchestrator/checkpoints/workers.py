"""A few threads that share one run of work."""

from __future__ import annotations

import os
import threading
from typing import Callable, Iterator, List, Optional, Protocol, Tuple, TypeVar

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, one call at a time, from any thread."""

THREADS = max(2, min(4, os.cpu_count() or 1))

Job = TypeVar("Job", contravariant=True)


class Worker(Protocol[Job]):
    """One thread's buffers and open files."""

    def do(self, job: Job) -> int:
        """Do it; return how many bytes of the total that was."""
        ...

    def close(self) -> None: ...


def no_progress(done: int, total: int) -> None:
    """A Progress that shows nothing."""


def share(
    jobs: Iterator[Job],
    worker: Callable[[], Worker[Job]],
    *,
    total: int,
    progress: Progress = no_progress,
) -> None:
    """Do all jobs, taken in order by several workers at once.

    When some fail, the rest is left and the error of the first of them in the order of the jobs
    is raised, once all workers have ended.
    """
    lock = threading.Lock()
    numbered = enumerate(jobs)
    failures: List[Tuple[int, BaseException]] = []
    done = 0

    def take() -> Optional[Tuple[int, Job]]:
        with lock:
            return None if failures else next(numbered, None)

    def count(length: int) -> None:
        nonlocal done
        with lock:
            done += length
            progress(done, total)

    def run() -> None:
        mine = worker()
        number = -1  # of the job in hand
        try:
            while (taken := take()) is not None:
                number, job = taken
                count(mine.do(job))
        except BaseException as error:  # handed to the caller's thread, which raises it
            failures.append((number, error))
        finally:
            mine.close()

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(THREADS - 1)]
    for helper in helpers:
        helper.start()
    try:
        run()
        for helper in helpers:
            helper.join()
    except BaseException as error:  # Ctrl-C between two jobs
        failures.append((-1, error))
    # Nobody may still write when the caller closes his files.
    for helper in helpers:
        helper.join()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
