"""Weights as a user names them: a file of any kind, a folder, or the index of its shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Mapping

from glm2.errors import CheckpointError, ConfigError
from glm2.formats.ckpt import index_ckpt
from glm2.formats.safetensors import index_safetensors
from glm2.formats.tensor import StoredTensor
from glm2.formats.torch_file import index_torch

_READERS: Mapping[str, Callable[[Path], Dict[str, StoredTensor]]] = {
    ".ckpt": index_ckpt,
    ".safetensors": index_safetensors,
    ".bin": index_torch,
    ".pth": index_torch,
    ".pt": index_torch,
}
_INDEX = ".index.json"
# What a folder's weights are called, in the order of preference.
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Source:
    """Where weights are, and every tensor of them by name."""

    path: Path
    """The file, or the index of the shards."""
    tensors: Mapping[str, StoredTensor]


def find_source(path: Path) -> Source:
    """The weights of ``path``: a file, an index of shards, or a folder with either.

    ConfigError when there are none. CheckpointError when a file is damaged, or when shards do
    not hold what their index says; all differences are listed.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ConfigError(f"there are no weights {path}", hint="give a file or a folder of weights")
    if path.name.endswith(_INDEX):
        return Source(path, _sharded(path))
    if path.suffix not in _READERS:
        raise ConfigError(
            f"{path} is of no kind that is known", hint=f"weights end in {', '.join(_READERS)}"
        )
    return Source(path, _READERS[path.suffix](path))


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _READERS]
    if len(files) == 1:
        return files[0]
    found = f"several: {', '.join(file.name for file in files)}" if files else "none"
    raise ConfigError(
        f"which weights of {folder}? It has no {_IN_FOLDER[0]} or {_IN_FOLDER[2]}, and of single "
        f"files {found}",
        hint="give the file itself",
    )


def _sharded(index: Path) -> Dict[str, StoredTensor]:
    places = _weight_map(index)
    names = sorted(set(places.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise ConfigError(
            f"{index} names files that are not there: {', '.join(absent)}",
            hint="download the missing shards",
        )
    found: Dict[str, StoredTensor] = {}
    problems: List[str] = []
    for name in names:
        file = index.parent / name
        tensors = _READERS[file.suffix](file)
        expected = [tensor for tensor, place in places.items() if place == name]
        missing = [tensor for tensor in expected if tensor not in tensors]
        unexpected = [tensor for tensor in tensors if places.get(tensor) != name]
        problems += [f"{name} lacks {', '.join(missing)}"] if missing else []
        problems += [f"{name} also has {', '.join(unexpected)}"] if unexpected else []
        found.update(tensors)
    if problems:
        raise CheckpointError(
            f"the shards are not those of {index}: {'; '.join(problems)}",
            hint="download all files again from the same revision",
        )
    return {tensor: found[tensor] for tensor in places}


def _weight_map(index: Path) -> Dict[str, str]:
    """Tensor -> file of a shard; only files beside the index that this module can read."""
    try:
        value = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not JSON", hint="download it again") from error
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places or not all(map(_plain, places.values())):
        raise CheckpointError(
            f"{index} has no weight_map from tensors to the files beside it",
            hint="download it again",
        )
    return places


def _plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and Path(name).suffix in _READERS
