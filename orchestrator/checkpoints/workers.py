"""A few threads that share one run of work."""

from __future__ import annotations

import os
import threading
from typing import Callable, Iterator, List, Optional, Protocol, TypeVar

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
    """Do all jobs, taken in order by several workers at once; raise what the first failure
    raised, after all workers have ended."""
    lock = threading.Lock()
    failures: List[BaseException] = []
    done = 0

    def take() -> Optional[Job]:
        with lock:
            return None if failures else next(jobs, None)

    def count(length: int) -> None:
        nonlocal done
        with lock:
            done += length
            progress(done, total)

    def run() -> None:
        mine = worker()
        try:
            while (job := take()) is not None:
                count(mine.do(job))
        except BaseException as error:  # handed to the caller's thread, which raises it
            failures.append(error)
        finally:
            mine.close()

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(THREADS - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
