"""The keys of the worker's YAML: those that its readers ask for, caught while they read."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple
from unittest.mock import patch

from docs.markdown import field_docs, table
from glm2 import config as model_config
from glm2 import dataset_section, settings, yaml_source


def worker_yaml() -> List[str]:
    """Lines of the page."""
    lines = [
        "# Keys of the worker's YAML",
        "",
        "The keys of the guide's files. One that is not listed is an error with its line; one that",
        "has no effect here is named in a warning. `python -m glm2 check --config FILE` judges a",
        "file; `--set KEY=VALUE` sets one key.",
        "",
    ]
    taken, ignored = _trace()
    rows = [
        (f"`{key}`", kind, "" if default is None else f"`{default}`", _meaning(key))
        for key, (kind, default) in sorted(taken.items())
    ]
    lines += table(("key", "kind", "default", "meaning"), rows)
    lines += ["## Accepted without effect", "", ", ".join(f"`{key}`" for key in sorted(ignored))]
    return lines


def _trace() -> Tuple[Dict[str, Tuple[str, Any]], List[str]]:
    """Keys that reading a configuration asks for, with kind and default; keys it ignores."""
    taken: Dict[str, Tuple[str, Any]] = {}
    ignored: List[str] = []
    real_take, real_ignore = yaml_source.Section.take, yaml_source.Section.ignore

    def name(section: Any, key: str) -> str:
        parts = ["[]" if part.isdigit() else part for part in section.name(key).split(".")]
        return ".".join(parts).replace(".[]", "[]")

    def take(
        section: Any,
        key: str,
        kind: type,
        default: Any = yaml_source._REQUIRED,
        **limits: Optional[float],
    ) -> Any:  # the reader's own signature
        needed = default is yaml_source._REQUIRED
        if kind is not list or default:
            shown = "required" if needed else default if default != "" else None
            ranges = [f"{_SIGNS[word]} {limit}" for word, limit in limits.items()]
            taken.setdefault(name(section, key), (", ".join([kind.__name__, *ranges]), shown))
        return real_take(section, key, kind, default, **limits)

    def ignore(section: Any, *keys: str) -> None:
        ignored.extend(name(section, key) for key in keys)
        real_ignore(section, *keys)

    with (
        patch.object(yaml_source.Section, "take", take),
        patch.object(yaml_source.Section, "ignore", ignore),
    ):
        # First those of training: the defaults shown are theirs.
        for path in sorted(
            settings.CONFIGS.glob("*.yaml"), key=lambda p: not p.stem.startswith("run_")
        ):
            settings.load_settings(path)
    return taken, sorted(set(ignored) - set(taken))


_SIGNS = {"least": "≥", "above": ">", "below": "<"}
_FIELDS: Sequence[Tuple[str, type]] = (
    ("model.model_config.pet_config.", model_config.LoraConfig),
    ("model.model_config.", model_config.ModelConfig),
    ("train_dataset.", dataset_section.Dataset),
    ("eval_dataset.", dataset_section.Dataset),
    ("context.", settings.Device),
    ("optimizer.", settings.Optimizer),
    ("lr_schedule.", settings.Schedule),
    ("runner_wrapper.scale_sense.", settings.LossScale),
    ("parallel_config.", settings.Parallel),
    ("", settings.Settings),
)
_NAMES = {"device_target": "target", "device_id": "id", "max_device_memory": "max_memory",
          "runtime_num_threads": "threads", "lr_end": "end", "loss_scale_value": "initial",
          "scale_factor": "factor", "scale_window": "window", "dataset_dir": "file",
          "vocab_file": "tokenizer", "gradient_aggregation_group": "gradient_groups",
          "resume_training": "resume", "gradient_accumulation_steps": "accumulation"}  # fmt: skip
_KEYS = {
    "callbacks[].type": "`CheckpointMointor` (the guide's spelling) or `MFLossMonitor`; others "
    "have no effect",
    "callbacks[].prefix": "first part of the checkpoints' names",
    "callbacks[].save_checkpoint_steps": "save after so many steps, and always at the end",
    "callbacks[].keep_checkpoint_max": "newest files of each rank that are kept",
    "context.mode": "0: graph mode; nothing else is accepted",
    "load_checkpoint": "weights to start from",
    "lr_schedule.learning_rate": "the highest one",
    "lr_schedule.warmup_steps": "steps until it is reached",
    "output_dir": "where checkpoints go; `launch` decides it for its ranks",
    "parallel.enable_parallel_optimizer": "data ranks share the optimizer's state",
    "parallel.strategy_ckpt_config.only_trainable_params": "with LoRA: checkpoints hold the "
    "adapters alone",
    "parallel_config.micro_batch_num": "batches whose gradients make one step",
    "parallel_config.pipeline_stage": "1: nothing else is supported",
    "run_mode": ", ".join(f"`{mode}`" for mode in settings.RUN_MODES),
    "runner_config.batch_size": "rows of each rank in a step; before that of the dataset",
    "runner_config.epochs": "passes over the dataset",
    "runner_wrapper.max_grad_norm": "global norm that gradients are clipped to",
    "runner_wrapper.use_clip_grad": "False: not clipped",
    "seed": "of weights, order of rows and dropout",
    "infer.prefill_model_path": "where `export` writes the graph that reads a prompt",
    "infer.increment_model_path": "where it writes the graph that reads one more token",
    "infer.infer_seq_length": "must be the model's `seq_length`",
}
_LAST = {
    **dict.fromkeys(
        (
            "auto_trans_ckpt",
            "auto_tune",
            "layer_scale",
            "lr_scale",
            "profile",
            "only_save_strategy",
        ),
        "True is refused: glm2 has none of it",
    ),
    "micro_batch_interleave_num": "1: nothing else is supported",
    "expert_parallel": "1: glm2 has no experts",
    "type": "the guide's class name; nothing else is accepted",
    "phase": "accepted; the section's name decides",
    "version": "2, the row format of ChatGLM2",
    "repeat": "1; use `runner_config.epochs`",
    "origin_columns": "the two columns of AdvertiseGen",
    "shuffle": "another order of rows in each epoch",
    "seed": "of the order of rows",
    "ignore_pad_token_for_loss": "False: padding is learned, too",
    "beta1": "of AdamW",
    "beta2": "of AdamW",
    "eps": "of AdamW",
    "weight_decay": "of AdamW; norms and biases are not decayed",
    "power": "of the polynomial decay",
    "lr_end": "the rate at the end of the decay",
}


def _meaning(key: str) -> str:
    if key in _KEYS:
        return _KEYS[key]
    last = key.rpartition(".")[2]
    for prefix, kind in _FIELDS:
        if key.startswith(prefix):
            docs = field_docs(kind)
            return docs.get(_NAMES.get(last, last), docs.get(last, _LAST.get(last, "")))
    return ""
