"""ChatGLM2 on MindSpore: the worker of glm2-orch, and the guide's interface in Python.

Importing it loads nothing: each name below is fetched at its first use, MindSpore with the first
one that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from glm2.auto import AutoConfig as AutoConfig
    from glm2.auto import AutoModel as AutoModel
    from glm2.auto import AutoTokenizer as AutoTokenizer
    from glm2.config import ModelConfig as ModelConfig
    from glm2.pipelines import TextGenerationPipeline as TextGenerationPipeline
    from glm2.pipelines import pipeline as pipeline
    from glm2.streaming import TextStreamer as TextStreamer
    from glm2.task import Trainer as Trainer

_HOMES = {
    "AutoConfig": "glm2.auto",
    "AutoModel": "glm2.auto",
    "AutoTokenizer": "glm2.auto",
    "ModelConfig": "glm2.config",
    "TextGenerationPipeline": "glm2.pipelines",
    "TextStreamer": "glm2.streaming",
    "Trainer": "glm2.task",
    "pipeline": "glm2.pipelines",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glm2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> List[str]:
    return sorted([*globals(), *_HOMES])
