"""Everything that one run is told: the guide's YAML -> Settings (frozen)."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence, Tuple

from glm2.config import ModelConfig
from glm2.dataset_section import Dataset, read_dataset
from glm2.errors import ConfigError
from glm2.infer_section import Graphs, read_infer
from glm2.model_section import read_model
from glm2.yaml_source import Section, Source, known_type, read_yaml

CONFIGS = Path(__file__).parent / "configs"
RUN_MODES = ("train", "finetune", "eval", "predict")
LATEST = "latest"
CHECKPOINT_NAME = re.compile(r"^(?P<prefix>.+)-(?P<epoch>\d+)_(?P<step>\d+)\.ckpt$", re.ASCII)
"""File name of a checkpoint: ``{prefix}_rank_{N}-{epoch}_{step}.ckpt``."""


@dataclass(frozen=True)
class Device:
    """``context``: where the graphs run."""

    target: str = "Ascend"
    """CPU, GPU or Ascend."""
    id: int = 0
    """Device of this process; the variable DEVICE_ID comes first where it is set."""
    max_memory: str = ""
    """Most memory of an Ascend device, such as 30GB; empty: MindSpore's own default."""
    threads: int = 0
    """Threads that start kernels on CPU, which have threads of their own, one a core; 0: one."""


@dataclass(frozen=True)
class Optimizer:
    """``optimizer``: AdamW with bias correction; norms and biases are not decayed."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Global norm that gradients are clipped to; 0: not clipped (``use_clip_grad: False``)."""


@dataclass(frozen=True)
class Schedule:
    """``lr_schedule``: linear warm-up from 0, then polynomial decay to ``end``."""

    learning_rate: float = 5e-5
    end: float = 1e-6
    warmup_steps: int = 0
    total_steps: int = -1
    """Length of the decay; -1: all steps of the run."""
    power: float = 1.0


@dataclass(frozen=True)
class LossScale:
    """``runner_wrapper.scale_sense``; in use with compute_dtype float16 only."""

    initial: float = 65536.0
    factor: float = 2.0
    window: int = 1000
    """Good steps until the scale is multiplied by the factor."""


@dataclass(frozen=True)
class Checkpoints:
    """The callback ``CheckpointMointor`` (the guide's spelling)."""

    prefix: str = "glm2"
    every_steps: int = 0
    """Save after so many steps, and always at the end; 0: only at the end."""
    keep: int = 5
    """Newest files of each rank that are kept."""
    only_trainable: bool = False
    """``parallel.strategy_ckpt_config.only_trainable_params``: checkpoints and strategy files
    hold the adapters of LoRA alone, without the frozen weights."""


@dataclass(frozen=True)
class Parallel:
    """``parallel_config``: how the ranks divide the work."""

    data_parallel: int = 0
    """Ranks with the same weights and different rows; 0: all that model_parallel leaves."""
    model_parallel: int = 1
    """Ranks that share each layer's weights, and the rows."""
    optimizer_shard: bool = False
    """``parallel.enable_parallel_optimizer``: each rank keeps its part of the optimizer's state."""
    gradient_groups: int = 1
    """``gradient_aggregation_group``: gradients are added up across ranks in at least so many
    pieces."""
    vocab_emb_dp: bool = True
    """Keep the embedding whole on each rank; False: its rows are shared by model_parallel."""


@dataclass(frozen=True)
class Settings:
    """One run of the worker."""

    model: ModelConfig
    device: Device
    train: Optional[Dataset]
    eval: Optional[Dataset]
    optimizer: Optimizer
    schedule: Schedule
    loss_scale: LossScale
    checkpoints: Checkpoints
    parallel: Parallel
    epochs: int
    seed: int
    output_dir: str
    load_checkpoint: str
    use_parallel: Optional[bool]
    """None: yes when RANK_SIZE is above 1."""
    run_mode: str
    do_eval: bool
    """Evaluate at the end of training, and in its course as the two intervals say."""
    eval_step_interval: int
    """Evaluate after so many steps; -1: not by steps."""
    eval_epoch_interval: int
    """Evaluate after so many epochs; -1: not by epochs."""
    resume: str
    """``resume_training``: the step to go on from: ``latest``, or the name of a checkpoint file
    such as ``glm2_rank_0-2_120.ckpt``; empty: training begins at step 1."""
    graphs: Optional[Graphs]
    """``infer``: the two graphs of ``export`` and ``infer``."""
    accumulation: int
    """Batches whose gradients make one step: ``parallel_config.micro_batch_num``, or
    ``runner_config.gradient_accumulation_steps``."""
    recompute: bool
    """Compute a layer's activations again in the backward pass instead of keeping them."""
    unused: Tuple[str, ...]
    """Keys of the file that have no effect here, to be named to the user."""


def find_config(name: str) -> Path:
    """The file of ``--config``: a path, or the name of a shipped configuration.

    A path of the guide, such as ``configs/glm2/run_glm2_6b.yaml``, means the shipped one of that
    name where there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = CONFIGS / (path.name if path.suffix == ".yaml" else f"{path.name}.yaml")
    if shipped.is_file() and (path.name == name or path.parent.parts[-2:] == ("configs", "glm2")):
        return shipped
    names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
    raise ConfigError(
        f"there is no configuration {name}", hint=f"give the path of a YAML file, or one of {names}"
    )


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read the YAML of a run; every key of it is used, named in ``unused``, or an error."""
    return parse_settings(read_yaml(path, overrides))


def check_row_length(settings: Settings) -> None:
    """Raise ConfigError unless a row of the training data is as long as the model's sequence."""
    dataset = needed(settings.train, "train_dataset")
    row = dataset.width
    if row != settings.model.seq_length:
        raise ConfigError(
            f"model.model_config.seq_length is {settings.model.seq_length}, but "
            f"max_source_length + max_target_length + 1 of train_dataset is {row}",
            hint=f"set model.model_config.seq_length to {row}",
        )


def needed(dataset: Optional[Dataset], name: str) -> Dataset:
    """The dataset itself; ConfigError where the configuration has none of that name."""
    if dataset is None:
        raise ConfigError(f"the configuration has no {name}", hint=f"add the section {name}")
    return dataset


def parse_settings(source: Source) -> Settings:
    """Settings from the values of a file."""
    top = Section(source, "", source.values)
    model = read_model(top)
    runner = top.section("runner_config")
    batch_size = runner.take("batch_size", int, None, least=1)
    epochs = runner.take("epochs", int, 1, least=1)
    accumulation = runner.take("gradient_accumulation_steps", int, 1, least=1)
    runner.ignore("sink_mode", "sink_size", "initial_epoch")
    runner.close()

    train = read_dataset(top, "train_dataset", batch_size)
    evaluation = read_dataset(top, "eval_dataset", None)
    wrapper = top.section("runner_wrapper")
    known_type(wrapper, "MFTrainOneStepCell", "MFTrainOneStepCell")
    scale = _loss_scale(wrapper.section("scale_sense"))
    clip = wrapper.take("use_clip_grad", bool, True)
    clip_norm = wrapper.take("max_grad_norm", float, 1.0, least=0)
    wrapper.close()
    parallel, micro_batches = _parallel(top)
    context = top.section("parallel")
    if context.take("enable_parallel_optimizer", bool, False):
        parallel = dataclasses.replace(parallel, optimizer_shard=True)
    strategy = context.section("strategy_ckpt_config")
    only_trainable = strategy.take("only_trainable_params", bool, False)
    strategy.ignore_rest()
    context.ignore_rest()
    if micro_batches > 1 and accumulation > 1:
        raise runner.error(
            "gradient_accumulation_steps",
            f"is {accumulation} while parallel_config.micro_batch_num is {micro_batches}",
            "both mean the batches of a step: set one of them to 1",
        )
    recompute = top.section("recompute_config")
    recompute_on = recompute.take("recompute", bool, False)
    recompute.ignore_rest()
    _refuse_features(top)
    export = "infer" in top.left and train is None
    settings = Settings(
        model=model,
        device=_device(top.section("context")),
        train=train,
        eval=evaluation,
        optimizer=_optimizer(top.section("optimizer"), clip_norm if clip else 0.0),
        schedule=_schedule(top.section("lr_schedule")),
        loss_scale=scale,
        checkpoints=dataclasses.replace(
            _checkpoints(top.sections("callbacks")), only_trainable=only_trainable
        ),
        parallel=parallel,
        epochs=epochs,
        seed=top.take("seed", int, 0, least=0),
        output_dir=top.take("output_dir", str, "./output"),
        load_checkpoint=top.take("load_checkpoint", str, None) or "",
        use_parallel=top.take("use_parallel", bool, None),
        run_mode=_run_mode(top, "predict" if export else "train"),
        do_eval=top.take("do_eval", bool, False),
        eval_step_interval=_interval(top, "eval_step_interval"),
        eval_epoch_interval=_interval(top, "eval_epoch_interval"),
        resume=_resume(top),
        graphs=read_infer(top, model),
        accumulation=max(accumulation, micro_batches),
        recompute=recompute_on,
        unused=(),
    )
    top.ignore(*_NO_EFFECT)
    top.close()
    _check_types(settings)
    return dataclasses.replace(settings, unused=tuple(source.unused))


# Keys of the guide's files that change nothing here: services, tuning of Ascend's own
# runtime, and registries that glm2 does not have.
_NO_EFFECT = (
    "remote_save_url", "src_strategy_path_or_dir", "trainer", "metric", "processor",
    "layer_decay", "lr_scale_factor",
    "moe_config", "filepath_prefix", "autotune_per_step", "profile_start_step",
    "profile_stop_step", "init_start_profile", "profile_communication", "profile_memory",
    "eval_callbacks",
)  # fmt: skip


def _device(section: Section) -> Device:
    if section.take("mode", int, 0) != 0:
        raise section.error("mode", "must be 0", "glm2 runs in graph mode")
    device = Device(
        target=section.take("device_target", str, "Ascend"),
        id=section.take("device_id", int, 0, least=0),
        max_memory=section.take("max_device_memory", str, ""),
        threads=section.take("runtime_num_threads", int, 0, least=0),
    )
    if device.target not in ("CPU", "GPU", "Ascend"):
        raise section.error("device_target", f"is {device.target!r}", "use CPU, GPU or Ascend")
    section.ignore_rest()
    return device


def _optimizer(section: Section, clip_norm: float) -> Optimizer:
    known_type(section, "AdamW", "AdamW", "FP32StateAdamWeightDecay", "FusedAdamWeightDecay")
    optimizer = Optimizer(
        beta1=section.take("beta1", float, 0.9, least=0, below=1),
        beta2=section.take("beta2", float, 0.95, least=0, below=1),
        eps=section.take("eps", float, 1e-8, above=0),
        weight_decay=section.take("weight_decay", float, 0.1, least=0),
        clip_norm=clip_norm,
    )
    section.close()
    return optimizer


def _schedule(section: Section) -> Schedule:
    known_type(section, "polynomial", "polynomial", "PolynomialWithWarmUpLR")
    schedule = Schedule(
        learning_rate=section.take("learning_rate", float, 5e-5, least=0),
        end=section.take("lr_end", float, 1e-6, least=0),
        warmup_steps=section.take("warmup_steps", int, 0, least=0),
        total_steps=section.take("total_steps", int, -1, least=-1),
        power=section.take("power", float, 1.0, above=0),
    )
    section.close()
    return schedule


def _loss_scale(section: Section) -> LossScale:
    known_type(section, "DynamicLossScaleUpdateCell", "DynamicLossScaleUpdateCell")
    scale = LossScale(
        initial=section.take("loss_scale_value", float, 65536.0, least=1),
        factor=section.take("scale_factor", float, 2.0, above=1),
        window=section.take("scale_window", int, 1000, least=1),
    )
    section.close()
    return scale


def _checkpoints(callbacks: Sequence[Section]) -> Checkpoints:
    found = Checkpoints()
    for section in callbacks:
        kind = section.take("type", str)
        if kind in ("CheckpointMointor", "CheckpointMonitor"):
            found = Checkpoints(
                prefix=section.take("prefix", str, "glm2"),
                every_steps=section.take("save_checkpoint_steps", int, 0, least=0),
                keep=section.take("keep_checkpoint_max", int, 5, least=1),
            )
            section.ignore("integrated_save", "async_save")
            section.close()
        elif kind == "MFLossMonitor":
            section.ignore_rest()
        elif kind in ("ObsMonitor", "SummaryMonitor", "EvalCallBack", "ProfileMonitor"):
            section.source.unused.append(f"callbacks {kind}")
        else:
            raise section.error("type", f"names an unknown callback {kind!r}")
    return found


def _run_mode(top: Section, default: str) -> str:
    mode: str = top.take("run_mode", str, default)
    if mode not in RUN_MODES:
        raise top.error("run_mode", f"is {mode!r}", f"use one of {', '.join(RUN_MODES)}")
    return mode


def _interval(top: Section, key: str) -> int:
    interval: int = top.take(key, int, -1)
    if interval < 1 and interval != -1:
        raise top.error(key, f"is {interval}", "give a number from 1 on, or -1 for never")
    return interval


def _resume(top: Section) -> str:
    """``resume_training``: a truth value, or as in MindFormers the name of a file."""
    name = top.left.get("resume_training")
    if isinstance(name, str):
        if name != LATEST and not CHECKPOINT_NAME.search(name):
            raise top.error(
                "resume_training", f"is {name!r}", "give True, or a name as glm2_rank_0-2_120.ckpt"
            )
        return str(top.take("resume_training", str))
    return LATEST if top.take("resume_training", bool, False) else ""


def _parallel(top: Section) -> Tuple[Parallel, int]:
    """``parallel_config``, and the micro batches of a step."""
    section = top.section("parallel_config")
    parallel = Parallel(
        data_parallel=section.take("data_parallel", int, 0, least=0),
        model_parallel=section.take("model_parallel", int, 1, least=1),
        gradient_groups=section.take("gradient_aggregation_group", int, 1, least=1),
        vocab_emb_dp=section.take("vocab_emb_dp", bool, True),
    )
    micro_batches = section.take("micro_batch_num", int, 1, least=1)
    for key, instead in (
        ("pipeline_stage", "glm2 does not train in stages: set it to 1, and share layers by "
         "model_parallel (sets that others trained in stages can be merged)"),
        ("expert_parallel", "glm2 has no experts: set it to 1"),
    ):  # fmt: skip
        value = section.take(key, int, 1)
        if value != 1:
            raise section.error(key, f"is {value}", instead)
    section.ignore("optimizer_shard")
    section.close()
    if top.take("micro_batch_interleave_num", int, 1) != 1:
        raise top.error("micro_batch_interleave_num", "is not supported", "set it to 1")
    return parallel, micro_batches


def _check_types(settings: Settings) -> None:
    types = (settings.model.compute_dtype, settings.model.param_init_type)
    if settings.device.target == "CPU" and "bfloat16" in types:
        raise ConfigError(
            "model_config: MindSpore has no bfloat16 on CPU",
            hint="set compute_dtype and param_init_type to float32, or use an Ascend 910B",
        )


def _refuse_features(top: Section) -> None:
    """Switches that would change the result, and that glm2 does not have: only off passes."""
    for key in ("auto_trans_ckpt", "only_save_strategy", "layer_scale",
                "lr_scale", "auto_tune", "profile"):  # fmt: skip
        if top.take(key, bool, False):
            raise top.error(key, "is not supported", "set it to False")
