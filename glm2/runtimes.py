"""What runs an exported graph: MindSpore Lite where it is installed, else MindSpore itself.

Both take NumPy arrays and, so that a cache need not leave the device, whatever they gave out.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Callable, List, Protocol, Sequence

import numpy as np

from glm2.errors import ConfigError, UsageError
from glm2.metrics import warn
from glm2.settings import Device

RUNTIMES = ("lite", "mindspore")


class Graph(Protocol):
    """A graph that is ready to run."""

    def run(self, inputs: Sequence[Any]) -> List[Any]:
        """All outputs, in a form that ``run`` takes again."""

    def to_numpy(self, output: Any) -> np.ndarray:
        """One output as an array."""


Loader = Callable[[Path], Graph]


def find_runtime(name: str = "") -> str:
    """The runtime to use: the one that is named, or the first of RUNTIMES that is installed."""
    installed = {
        "lite": importlib.util.find_spec("mindspore_lite") is not None,
        "mindspore": importlib.util.find_spec("mindspore") is not None,
    }
    for found in (name,) if name else RUNTIMES:
        if installed[found]:
            return found
    raise UsageError(
        f"{'mindspore_lite' if name == 'lite' else 'MindSpore'} is not installed",
        hint="install mindspore, or mindspore_lite of the version that exported the graphs",
    )


def loader(runtime: str, device: Device, lite_config: str = "") -> Loader:
    """Loads graphs for ``runtime`` and ``device``; MindSpore's device must have been chosen.

    ``lite_config`` is MindSpore Lite's own file, such as the guide's lite.ini; empty: none. For
    another runtime it has no effect, and the user is told so.
    """
    if runtime == "lite":
        return lambda file: _LiteGraph(file, device, lite_config)
    if lite_config:
        warn(f"{lite_config} has no effect: it is for MindSpore Lite, which is not in use")
    return _MindSporeGraph


def graph_file(path: Path) -> Path:
    """The file of an exported graph: MindSpore adds ``_graph`` to the name of a large one."""
    for candidate in (path, path.with_name(f"{path.stem}_graph{path.suffix}")):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"there is no graph {path}", hint="write it with python -m glm2 export")


class _MindSporeGraph:
    """``mindspore.load`` and ``nn.GraphCell``."""

    def __init__(self, file: Path) -> None:
        import mindspore as ms

        try:
            self._cell = ms.nn.GraphCell(ms.load(str(file)))
        except (RuntimeError, ValueError) as error:
            raise _unreadable(file, error) from error
        self._tensor = ms.Tensor

    def run(self, inputs: Sequence[Any]) -> List[Any]:
        tensors = [self._tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
        return list(self._cell(*tensors))

    def to_numpy(self, output: Any) -> np.ndarray:
        return output.asnumpy()


class _LiteGraph:
    """``mindspore_lite.Model``. Its tensors live on the host; caches are arrays in between."""

    def __init__(self, file: Path, device: Device, lite_config: str) -> None:
        import mindspore_lite as lite

        context = lite.Context()
        context.target = [device.target.lower()]
        if device.target == "Ascend":
            context.ascend.device_id = device.id
        elif device.target == "CPU" and device.threads:
            context.cpu.thread_num = device.threads
        self._model = lite.Model()
        try:
            self._model.build_from_file(str(file), lite.ModelType.MINDIR, context, lite_config)
        except RuntimeError as error:
            raise _unreadable(file, error) from error

    def run(self, inputs: Sequence[Any]) -> List[Any]:
        tensors = self._model.get_inputs()
        # Lite uses these arrays in place: they must live until it is done.
        arrays = [np.ascontiguousarray(value) for value in inputs]
        for tensor, array in zip(tensors, arrays):
            tensor.set_data_from_numpy(array)
        # And gives its own memory, which the next run overwrites.
        return [output.get_data_to_numpy().copy() for output in self._model.predict(tensors)]

    def to_numpy(self, output: Any) -> np.ndarray:
        return output


def _unreadable(file: Path, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines()
    return ConfigError(
        f"{file} cannot be loaded: {lines[0] if lines else type(error).__name__}",
        hint="export it again with the MindSpore of this version, whole",
    )
