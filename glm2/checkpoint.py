"""Checkpoints of a rank: weights, optimizer state and progress, under MindFormers' names.

``output/checkpoint/rank_N/{prefix}_rank_{N}-{epoch}_{step}.ckpt``: epoch and step of that
epoch, both from 1. A file appears whole or not at all, and ends in MindSpore's CRC-32 of all
before it. ``meta.json`` beside it names the newest step that every rank has.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from glm2.adapters import is_adapter, own_name
from glm2.download import DOWNLOADS, RELEASED, URL, obtain
from glm2.errors import CheckpointError, ConfigError
from glm2.settings import CHECKPOINT_NAME
from glm2.weights import ENDINGS, PROGRESS_NAMES, Progress, compare, is_state, listed

META = "meta.json"


def save_checkpoint(
    folder: Path, name: str, parameters: Sequence[Parameter], progress: Progress
) -> Path:
    """Write ``name``.ckpt into ``folder``; it is on the disk when this returns."""
    hidden = folder / ".saving"
    hidden.mkdir(parents=True, exist_ok=True)
    records = [{"name": p.name, "data": p} for p in parameters]
    for key, value in asdict(progress).items():
        kind = np.float32 if isinstance(value, float) else np.int64
        records.append({"name": key, "data": Tensor(np.array(value, kind))})
    temporary = hidden / f"{name}.ckpt"
    file = folder / temporary.name
    try:
        ms.save_checkpoint(records, str(temporary), crc_check=True)
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
    return file


def conclude(file: Path, keep: int) -> None:
    """Mark the step of ``file`` as the last one in ``meta.json``, as MindFormers does, and remove
    all but the newest ``keep`` of its kind.

    To be called when all ranks have saved the step: until then the older ones are needed.
    """
    match = CHECKPOINT_NAME.match(file.name)
    assert match, file
    meta = {
        "last_epoch": int(match["epoch"]),
        "last_step": int(match["step"]),
        "last_ckpt_file": file.name,
    }
    temporary = file.parent / ".meta.json"
    with temporary.open("w", encoding="utf-8") as out:
        out.write(json.dumps(meta) + "\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file.parent / META)
    for old in saved_files(file.parent, match["prefix"])[:-keep]:
        old.unlink()
    _sync_folder(file.parent)


def saved_files(folder: Path, prefix: str) -> List[Path]:
    """Checkpoints of that prefix, oldest first: by number, as text 10 comes before 4."""
    found = []
    for file in folder.glob(f"{glob.escape(prefix)}-*.ckpt"):
        match = CHECKPOINT_NAME.match(file.name)
        if match and match["prefix"] == prefix:
            found.append((*step_of(file), file))
    return [file for _, _, file in sorted(found)]


def step_of(file: Path) -> Tuple[int, int]:
    """Epoch and step in the name of a checkpoint."""
    match = CHECKPOINT_NAME.match(file.name)
    if not match:
        raise ConfigError(f"{file} is not named as a checkpoint of training: …-EPOCH_STEP.ckpt")
    return int(match["epoch"]), int(match["step"])


def damage(file: Path) -> str:
    """What is wrong with a checkpoint of training, by its CRC-32; empty: nothing."""
    crc, last = 0, b""
    try:
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                block = last + block
                last = block[-_TRAILER:]
                crc = zlib.crc32(block[:-_TRAILER], crc)
    except OSError as error:
        return error.strerror or type(error).__name__
    if len(last) < _TRAILER or not last.startswith(b"crc_num"):
        return "it is cut off"
    if int.from_bytes(last[7:], "big") != crc:
        return "its checksum differs"
    return ""


def load_state(parameters: Sequence[Parameter], file: Path) -> Progress:
    """Fill weights and optimizer state from a checkpoint of training; returns where it stands.

    Everything must be there in its shape and type: CheckpointError lists all that differ.
    """
    found = read_parameters(file)
    wanted = {p.name: p for p in parameters}
    state = {name: value for name, value in found.items() if name not in PROGRESS_NAMES}
    problems = compare(
        {name: tuple(p.shape) for name, p in wanted.items()},
        {name: tuple(p.shape) for name, p in state.items()},
    )
    problems += [
        f"{name} is {state[name].dtype}, the model needs {p.dtype}"
        for name, p in wanted.items()
        if name in state and state[name].dtype != p.dtype
    ]
    problems += [f"missing {name}" for name in PROGRESS_NAMES if name not in found]
    if problems:
        raise CheckpointError(
            f"training cannot go on from {file}:{listed(problems)}",
            hint="resume with the configuration that wrote it; without resume_training the "
            "weights alone are loaded",
        )
    for name, parameter in wanted.items():
        parameter.set_data(state[name])
    return Progress(*(found[name].asnumpy().item() for name in PROGRESS_NAMES))


def find_weights(name: str, url: Optional[str] = None) -> Path:
    """The file that ``load_checkpoint`` means: a path, or a name such as ``glm2_6b``, which is
    fetched when it is not here and ``url`` or GLM2_DOWNLOAD_URL says from where."""
    for candidate in (Path(name), *(DOWNLOADS / f"{name}{end}" for end in ENDINGS)):
        if candidate.is_file():
            if candidate.suffix not in ENDINGS:
                raise ConfigError(
                    f"{candidate} is no checkpoint: it must end in .ckpt or .safetensors"
                )
            return candidate
    hint = "give --load_checkpoint a .ckpt or .safetensors file"
    if name in RELEASED:
        if url or os.environ.get(URL):
            return obtain(f"{name}.ckpt", url=url)
        hint += f", put {name}.ckpt into ./{DOWNLOADS}, or set {URL} to the web folder that has it"
    raise ConfigError(f"there are no weights {name}", hint=hint)


def load_weights(model: ms.nn.Cell, file: Path) -> None:
    """Fill a model without adapters from a file; optimizer state in it is passed over.

    Every weight must be there with its shape: CheckpointError lists all that differ.
    """
    found = read_weights(file)
    if any(map(is_adapter, found)):
        raise CheckpointError(
            f"{file} holds LoRA adapters, but the configuration has no pet_config",
            hint="--set model.model_config.pet_config.pet_type=lora, or merge them into their "
            "weights: glm2-orch merge-ckpt --lora_alpha",
        )
    fill(list(model.get_parameters()), found, str(file))


def fill(parameters: Sequence[Parameter], found: Mapping[str, Parameter], source: str) -> None:
    """Give the parameters the values of the same name, in their own type.

    CheckpointError lists all that is missing from ``source``, unexpected, or of another shape.
    """
    problems = compare(
        {p.name: tuple(p.shape) for p in parameters},
        {name: tuple(p.shape) for name, p in found.items()},
    )
    if problems:
        raise CheckpointError(
            f"{source} does not fit the model:{listed(problems)}",
            hint="use the model_config that the weights were trained with; files of Hugging Face "
            "go through python -m glm2 convert, and pieces of ranks through glm2-orch merge-ckpt",
        )
    for parameter in parameters:
        parameter.set_data(found[parameter.name].astype(parameter.dtype))


def read_weights(file: Path) -> Dict[str, Parameter]:
    """Weights and adapters of a file by name, without the state of training."""
    found = read_parameters(file)
    return {own_name(name): value for name, value in found.items() if not is_state(name)}


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


_TRAILER = 17
"""Bytes at the end of a file with a CRC: ``crc_num`` and ten of the number, big-endian."""


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
