"""Checkpoints of a rank: weights, optimizer state and progress, under MindFormers' names.

``output/checkpoint/rank_N/{prefix}_rank_{N}-{epoch}_{step}.ckpt``: epoch and step of that
epoch, both from 1. A file appears whole or not at all.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Dict, List, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from glm2.errors import CheckpointError, ConfigError
from glm2.weights import Progress, compare, is_state

DOWNLOADS = Path("checkpoint_download") / "glm2"
"""Where weights that are given by name, such as ``glm2_6b``, are looked for."""


def save_checkpoint(
    folder: Path,
    name: str,
    parameters: Sequence[Parameter],
    progress: Progress,
    keep: int,
) -> Path:
    """Write ``name``.ckpt into ``folder`` and remove all but the newest ``keep`` of its kind."""
    hidden = folder / ".saving"
    hidden.mkdir(parents=True, exist_ok=True)
    records = [{"name": p.name, "data": p} for p in parameters]
    for key, value in asdict(progress).items():
        kind = np.float32 if isinstance(value, float) else np.int64
        records.append({"name": key, "data": Tensor(np.array(value, kind))})
    temporary = hidden / f"{name}.ckpt"
    file = folder / temporary.name
    try:
        ms.save_checkpoint(records, str(temporary))
        temporary.chmod(0o600)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot save {file}: {_reason(error)}",
            hint="make room in that folder; the checkpoints already there are whole",
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    _sync_folder(folder)
    for old in _by_age(folder, name)[:-keep]:
        old.unlink()
    return file


def find_weights(name: str) -> Path:
    """The file that ``load_checkpoint`` means: a path, or a name such as ``glm2_6b``."""
    for candidate in (Path(name), *(DOWNLOADS / f"{name}{end}" for end in _ENDINGS)):
        if candidate.is_file():
            if candidate.suffix not in _ENDINGS:
                raise ConfigError(
                    f"{candidate} is no checkpoint: it must end in .ckpt or .safetensors"
                )
            return candidate
    raise ConfigError(
        f"there are no weights {name}",
        hint="give --load_checkpoint a .ckpt or .safetensors file"
        + ("" if "/" in name else f", or put {name}.ckpt into ./{DOWNLOADS}"),
    )


def load_weights(model: ms.nn.Cell, file: Path) -> None:
    """Fill the model from a file; optimizer state in it is passed over.

    Every weight must be there with its shape: CheckpointError lists all that differ.
    """
    wanted = {p.name: p for p in model.get_parameters()}
    found = read_parameters(file)
    weights = {name: value for name, value in found.items() if not is_state(name)}
    problems = compare(
        {name: tuple(p.shape) for name, p in wanted.items()},
        {name: tuple(p.shape) for name, p in weights.items()},
    )
    if problems:
        raise CheckpointError(
            f"{file} does not fit the model: " + "; ".join(problems),
            hint="use the model_config that the weights were trained with",
        )
    for name, parameter in wanted.items():
        parameter.set_data(weights[name].astype(parameter.dtype))


def read_parameters(file: Path) -> Dict[str, Parameter]:
    """All parameters of a ``.ckpt`` or ``.safetensors`` file by name."""
    try:
        found: Dict[str, Parameter] = ms.load_checkpoint(str(file), format=file.suffix[1:])
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read as weights: {_reason(error)}",
            hint="the file is incomplete or of another kind: copy it again",
        ) from error
    return found


_ENDINGS = (".ckpt", ".safetensors")
_STEP = re.compile(r"-(\d+)_(\d+)\.ckpt$")


def _by_age(folder: Path, name: str) -> List[Path]:
    """Checkpoints of the same prefix, oldest first: by number, as text 10 comes before 4."""
    prefix = name.rpartition("-")[0]
    found = []
    for file in folder.glob(f"{glob.escape(prefix)}-*.ckpt"):
        match = _STEP.search(file.name)
        if match and file.name[: match.start()] == prefix:
            found.append((int(match[1]), int(match[2]), file))
    return [file for _, _, file in sorted(found)]


def _reason(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
