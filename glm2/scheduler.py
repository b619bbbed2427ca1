"""MindSpore's scheduler process of a dynamic cluster."""

from __future__ import annotations

import os
from typing import Mapping

from glm2.errors import Glm2Error, UsageError
from glm2.metrics import say


def serve(environ: Mapping[str, str]) -> int:
    """Bring the workers together and wait until they have ended.

    MindSpore ends this process itself, with 0, when all workers have taken their leave. When
    one vanished without, it waits for its heartbeat (about 30 s), and the status is 1.
    """
    missing = [n for n in ("MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT") if n not in environ]
    if missing:
        raise UsageError(
            f"the scheduler needs {', '.join(missing)} in its environment",
            hint="start it as the launcher does, or with MS_SCHED_HOST=127.0.0.1 and a free port",
        )
    os.environ["MS_ROLE"] = "MS_SCHED"
    os.environ.setdefault("GLOG_v", "3")
    import mindspore as ms
    from mindspore import communication

    ms.set_device("CPU")
    say(f"scheduler for {environ['MS_WORKER_NUM']} workers on port {environ['MS_SCHED_PORT']}")
    try:
        communication.init()
    except RuntimeError as error:
        raise Glm2Error(
            f"the scheduler lost its workers: {str(error).splitlines()[0]}",
            hint="read the end of that worker's log",
        ) from error
    return 0
