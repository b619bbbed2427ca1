"""The worker's command line: ``python -m glm2 --config FILE --run_mode MODE``."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from glm2.errors import ConfigError, Glm2Error, LostRank, UsageError
from glm2.settings import RUN_MODES

_RUN_MODE = "default: run_mode of the file"

_EPILOG = """\
other commands:
  python -m glm2 sample-data --out DIR   write the built-in data set and its tokenizer
  python -m glm2 scheduler               MindSpore's scheduler process (variables MS_*)
  python -m glm2 check --config FILE     judge a configuration, without MindSpore
  python -m glm2 describe --config FILE  layers, parameters and memory, without making the weights
  python -m glm2 convert --from A --to B official Hugging Face weights to MindSpore's, or back
  python -m glm2 export --config FILE    the two MindIR graphs of a model, float or int8
  python -m glm2 infer --config FILE     answers from exported graphs

example:
  python -m glm2 --config tiny_cpu --run_mode finetune
"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _shown(*_chosen(words))
    except Glm2Error as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  → {error.hint}", file=sys.stderr)
        if isinstance(error, LostRank):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_status)
        return error.exit_status
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.filename is None:
            _drop_output()
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        print("  → see that the folder exists, can be written and has room", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _chosen(words: List[str]) -> Tuple[Callable[[List[str]], int], List[str]]:
    """The command that is meant, and its words."""
    if not words or words[0].startswith("-"):
        return _work, words
    if words[0] not in _TOOLS:
        near = difflib.get_close_matches(words[0], _TOOLS, 1)
        raise UsageError(
            f"there is no command {words[0]}",
            hint=f"did you mean {near[0]}?" if near else "a mode is an option: --run_mode predict",
        )
    return _TOOLS[words[0]], words[1:]


def _shown(command: Callable[[List[str]], int], words: List[str]) -> int:
    """Run a command whose output may be cut off by its reader, such as ``| head``."""
    try:
        status = command(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """What could not be written is not tried again at the interpreter's end, which would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _work(words: List[str]) -> int:
    options = work_parser().parse_args(words)
    from glm2.run import run

    return run(options, os.environ)


def _check(words: List[str]) -> int:
    """Judge the configuration and its overrides; needs neither MindSpore nor the data."""
    parser = argparse.ArgumentParser(
        prog="python -m glm2 check", description="Judge a configuration: exit status 0 or 3."
    )
    _add_config(parser)
    parser.add_argument("--run_mode", choices=RUN_MODES, help=_RUN_MODE)
    parser.add_argument("--ranks", type=_count, metavar="N", help="processes there will be")
    parser.add_argument("--host_ranks", type=_count, metavar="N", help="how many share a host")
    options = parser.parse_args(words)
    from glm2.check import judge
    from glm2.settings import find_config, parse_settings
    from glm2.yaml_source import read_yaml

    source = read_yaml(find_config(options.config), options.overrides)
    settings = parse_settings(source)
    verdict = judge(
        settings,
        source,
        options.run_mode or settings.run_mode,
        ranks=options.ranks,
        host_ranks=options.host_ranks,
    )
    for fault in verdict.faults:
        print(f"error: {fault.message}", file=sys.stderr)
        if fault.hint:
            print(f"  → {fault.hint}", file=sys.stderr)
    for warning in (*verdict.warnings, *(f"{key} has no effect" for key in settings.unused)):
        print(f"warning: {warning}", file=sys.stderr)
    return ConfigError.exit_status if verdict.faults else 0


def _describe(words: List[str]) -> int:
    """Numbers of a configuration; needs neither MindSpore nor memory for the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m glm2 describe",
        description="Layers, parameters, and the memory of a rank by part and by layout.",
    )
    _add_config(parser)
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="default: table"
    )
    options = parser.parse_args(words)
    from glm2 import describe
    from glm2.settings import find_config, load_settings

    settings = load_settings(find_config(options.config), options.overrides)
    if options.output == "json":
        print(json.dumps(describe.as_dict(options.config, settings), indent=1))
    else:
        print(describe.table(options.config, settings))
    return 0


def _sample_data(words: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m glm2 sample-data",
        description="Write train.json, dev.json and tokenizer.model of the built-in sample.",
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="made if need be")
    options = parser.parse_args(words)
    from glm2 import sample

    try:
        files = sample.write(options.out)
    except OSError as error:
        raise UsageError(f"cannot write to {options.out}: {error.strerror}") from error
    for file in files:
        print(file)
    return 0


def _scheduler(words: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m glm2 scheduler",
        description="MindSpore's scheduler: brings the workers together, and ends after them. "
        "Reads MS_WORKER_NUM, MS_SCHED_HOST and MS_SCHED_PORT.",
    )
    parser.parse_args(words)
    from glm2.scheduler import serve

    return serve(os.environ)


def _convert(words: List[str]) -> int:
    from glm2.convert import command

    return command(words)


def _export(words: List[str]) -> int:
    from glm2.export import command

    return command(words, os.environ)


def _infer(words: List[str]) -> int:
    from glm2.infer import command

    return command(words, os.environ)


def work_parser() -> argparse.ArgumentParser:
    """The options of the modes."""
    parser = argparse.ArgumentParser(
        prog="python -m glm2",
        description="Train, evaluate or run ChatGLM2 with MindSpore.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    _add_config(parser)
    add("--run_mode", choices=RUN_MODES, help=_RUN_MODE)
    add("--load_checkpoint", metavar="F",
        help="weights to start from (.ckpt or .safetensors); LoRA adapters alone go on top of "
        "checkpoint_name_or_path")  # fmt: skip
    add(
        "--resume_training",
        metavar="WHAT",
        help="True, or a checkpoint's file name: go on from the folder of --load_checkpoint",
    )
    add("--predict_data", metavar="S", action="append",
        help="text to answer, or a file with one on each line; may be repeated")  # fmt: skip
    add("--device_id", type=int, metavar="N", help="device of a single process")
    add("--use_parallel", type=_truth, metavar="BOOL", help="default: when RANK_SIZE is above 1")
    add("--train_dataset_dir", metavar="D", help="train.json, or its folder")
    add("--eval_dataset_dir", metavar="D", help="dev.json, or its folder")
    add("--output_dir", metavar="D", help="default: GLM2_OUTPUT_DIR, else the file's output_dir")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="YAML of the run, or a shipped name")
    add("--set", dest="overrides", action="append", default=[], metavar="K=V",
        help="set a key of the file, such as runner_config.epochs=2")  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


_TOOLS: Dict[str, Callable[[List[str]], int]] = {
    "sample-data": _sample_data,
    "scheduler": _scheduler,
    "check": _check,
    "describe": _describe,
    "convert": _convert,
    "export": _export,
    "infer": _infer,
}


if __name__ == "__main__":
    sys.exit(main())
