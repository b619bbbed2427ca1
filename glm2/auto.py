"""The guide's AutoConfig, AutoModel and AutoTokenizer: a model by its name.

A name is that of a released model (``glm2_6b``, ``glm2_6b_lora``), of a shipped configuration
(``tiny_cpu``), or the path of a configuration or of a folder with ``*.yaml``, weights and
``tokenizer.model``. What a name stands for is looked for in ``./checkpoint_download/glm2`` and
fetched into it (see ``glm2.download``).
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Union

from glm2 import sample
from glm2.config import ModelConfig
from glm2.download import RELEASED, VOCABULARY, obtain
from glm2.errors import ConfigError
from glm2.metrics import warn
from glm2.settings import find_config, load_settings
from glm2.tokenizer import Tokenizer
from glm2.weights import ENDINGS

if TYPE_CHECKING:
    from glm2.model import Glm2

BASE = "glm2_6b"
"""The weights below adapters that come alone."""


class OpenConfig:
    """The keys of ``model_config`` as attributes, which may be set until a model is built.

    >>> config = AutoConfig.from_pretrained("glm2_6b")
    >>> config.use_past = False
    >>> config.num_layers
    28
    """

    def __init__(self, config: ModelConfig) -> None:
        vars(self).update({f.name: getattr(config, f.name) for f in dataclasses.fields(config)})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self):
            near = difflib.get_close_matches(name, vars(self), 1)
            raise ConfigError(
                f"model_config has no key {name}", hint=f"did you mean {near[0]}?" if near else ""
            )
        vars(self)[name] = value

    def __repr__(self) -> str:
        return f"OpenConfig({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def settled(self) -> ModelConfig:
        """The keys as they are now; ConfigError when they contradict each other."""
        return ModelConfig(**vars(self))


class AutoConfig:
    """Configurations by name."""

    @staticmethod
    def from_pretrained(name: str, **changes: Any) -> OpenConfig:
        """The configuration of a name, with ``changes`` to its keys.

        A released model has its whole ``seq_length`` of 2048 here: the shorter one of its file
        is that of the rows it is fine-tuned on.
        """
        file = _config_file(name)
        config = OpenConfig(load_settings(file).model)
        if name in RELEASED:
            config.seq_length = ModelConfig.seq_length
            config.checkpoint_name_or_path = name
        for key, value in changes.items():
            setattr(config, key, value)
        return config


class AutoModel:
    """Networks by name or by configuration, with their weights, ready to ``generate``."""

    @staticmethod
    def from_pretrained(name: str, *, url: Optional[str] = None, **changes: Any) -> Glm2:
        """The network of a name; ``url`` is where released weights are fetched from."""
        config = AutoConfig.from_pretrained(name, **changes)
        if Path(name).is_dir() and "checkpoint_name_or_path" not in changes:
            config.checkpoint_name_or_path = str(_only(Path(name), ENDINGS, "weights"))
        return AutoModel.from_config(config, url=url)

    @staticmethod
    def from_config(config: Union[OpenConfig, ModelConfig], *, url: Optional[str] = None) -> Glm2:
        """The network of a configuration, with the weights of ``checkpoint_name_or_path``.

        With ``pet_config``, adapters are merged into the weights. Without
        ``checkpoint_name_or_path`` the weights are fresh.
        """
        import mindspore as ms

        from glm2.checkpoint import find_weights, load_weights
        from glm2.lora import add_adapters, load_adapted, merge
        from glm2.model import Glm2
        from glm2.parallel import plan_places

        # Operation by operation, MindSpore's default, a token takes many times as long.
        ms.set_context(mode=ms.GRAPH_MODE)
        if ms.get_context("device_target") == "CPU":
            plan_places()
        settled = config if isinstance(config, ModelConfig) else config.settled()
        name = settled.checkpoint_name_or_path
        file = find_weights(name, url) if name else None
        model = Glm2(settled)
        add_adapters(model)
        if file is None:
            warn("checkpoint_name_or_path is empty: the model has random weights")
        elif settled.pet_config:
            load_adapted(model, file, BASE)
        else:
            load_weights(model, file)
        merge(model)
        model.set_train(False)
        return model


class AutoTokenizer:
    """Tokenizers by name."""

    @staticmethod
    def from_pretrained(name: str, *, url: Optional[str] = None) -> Tokenizer:
        """The tokenizer of a name, of a folder that holds ``tokenizer.model``, or of a file."""
        path = Path(name)
        if name in RELEASED:
            return Tokenizer(obtain(VOCABULARY, url=url))
        if path.is_dir():
            return Tokenizer(path / VOCABULARY)
        if path.is_file() and path.suffix == ".model":
            return Tokenizer(path)
        settings = load_settings(_config_file(name))
        dataset = settings.eval or settings.train
        if dataset is None:
            raise ConfigError(f"the configuration {name} names no tokenizer")
        return Tokenizer(sample.resolve(dataset.tokenizer))


def _config_file(name: str) -> Path:
    if Path(name).is_dir():
        return _only(Path(name), (".yaml", ".yml"), "configuration")
    try:
        return find_config(RELEASED.get(name, name))
    except ConfigError as error:
        released = ", ".join(RELEASED)
        raise ConfigError(error.message, hint=f"{error.hint}, or one of {released}") from None


def _only(folder: Path, endings: tuple, what: str) -> Path:
    """The one file of its kind in a folder."""
    files: List[Path] = sorted(f for f in folder.iterdir() if f.suffix in endings)
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise ConfigError(
            f"{folder} must hold one {what} ({' or '.join(endings)}); it holds {found}"
        )
    return files[0]
