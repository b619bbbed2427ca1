"""``python -m glm2 infer``: answers from the two graphs of an exported model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from glm2.config import ModelConfig
from glm2.continuation import next_token, sources
from glm2.download import RELEASED
from glm2.errors import ConfigError, UsageError
from glm2.infer_section import Graphs
from glm2.predict import answers, tokenizer_file
from glm2.prompts import read_prompts
from glm2.runtimes import RUNTIMES, Graph, Loader, find_runtime, graph_file, loader
from glm2.sampling import Sampling
from glm2.settings import Device, Settings, find_config, load_settings
from glm2.tokenizer import Tokenizer, build_prompt, tokenizer_for


def command(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Answer ``--predict_data``, or what is typed; returns the exit status."""
    options = _parser().parse_args(words)
    settings = _settings(options)
    graphs = _graphs(options, settings, environ)
    config, target = _network(graphs, settings)
    _check_guides_options(options, config)
    tokenizer = tokenizer_for(config, tokenizer_file(settings, options.tokenizer or ""))
    questions = read_prompts(options.predict_data) if options.predict_data else []
    device = settings.device if settings else Device(target)
    if options.device_target:
        device = dataclasses.replace(device, target=options.device_target)
    if options.device_id is not None:
        device = dataclasses.replace(device, id=options.device_id)
    runtime = find_runtime(options.runtime or "")
    print(f"{runtime} on {device.target}: loading {graphs.prefill} …", file=sys.stderr)
    load = loader(runtime, device, options.config_path or "")
    if runtime == "mindspore":
        os.environ.setdefault("GLOG_v", "3")
        from glm2.parallel import Layout, start

        start(device, Layout(), environ)
    model = Exported.load(graphs, config, load)
    sampling = Sampling.of(config, settings.seed if settings else 0)
    if questions:
        for answer in answers(model, tokenizer, questions, sampling):
            print([{"text_generation_text": [answer.text]}], flush=True)
        return 0
    return _converse(model, tokenizer, sampling)


@dataclass(frozen=True)
class Exported:
    """A model as its two graphs: continues at most ``config.batch_size`` prompts at a time."""

    config: ModelConfig
    prefill: Graph
    increment: Graph

    @classmethod
    def load(cls, graphs: Graphs, config: ModelConfig, load: Loader) -> Exported:
        """ConfigError when a graph is missing or cannot be read."""
        files = [graph_file(graphs.prefill), graph_file(graphs.increment)]
        return cls(config, load(files[0]), load(files[1]))

    @property
    def batch(self) -> int:
        return self.config.batch_size

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: Optional[int] = None,
        draws: Optional[Sequence[int]] = None,
    ) -> Iterator[List[int]]:
        """One token for each prompt at a time; see ``Continues``."""
        batch, columns = self.batch, self.config.seq_length
        lengths = [len(prompt) for prompt in prompts]
        if not 0 < len(prompts) <= batch or not 0 < min(lengths) <= max(lengths) < columns:
            raise UsageError(
                f"the graphs take 1 to {batch} prompts of 1 to {columns - 1} tokens, not "
                f"{len(prompts)} of up to {max(lengths, default=0)}",
                hint="shorten the prompt, or export with a larger seq_length or batch_size",
            )
        missing = batch - len(prompts)
        used = np.full((batch, columns), self.config.pad_token_id, np.int32)
        for row, prompt in zip(used, [*prompts, *prompts[:1] * missing]):
            row[: len(prompt)] = prompt
        ends = np.array(lengths + lengths[:1] * missing, np.int32)
        draw = sources(sampling, len(prompts), draws)
        graph, inputs, caches = self.prefill, [used.copy(), ends.copy()], []
        count = columns - min(lengths)
        for _ in range(count if max_new_tokens is None else min(count, max_new_tokens)):
            out, *caches = graph.run([*inputs, *caches])
            logits = graph.to_numpy(out)
            tokens = [
                next_token(logits[row], used[row, : ends[row]], sampling, draw[row])
                for row in range(len(prompts))
            ]
            yield tokens
            new = np.array(tokens + tokens[:1] * missing, np.int32)
            # A row at its last column stays there, while the others grow: it has ended.
            place = np.minimum(ends, columns - 1)
            used[np.arange(batch), place] = new
            graph, inputs = self.increment, [new, place]
            ends = np.minimum(ends + 1, columns)


def _converse(model: Exported, tokenizer: Tokenizer, sampling: Sampling) -> int:
    """Answer what is typed, line by line, until the input ends."""
    print("A question, or a whole prompt that begins with [Round 1]; Ctrl-D ends.", file=sys.stderr)
    for text in typed():
        begun = time.monotonic()
        try:
            (answer,) = answers(model, tokenizer, [text], sampling, _print)
        except UsageError as error:
            print(f"{error.message}\n  → {error.hint}", file=sys.stderr)
            continue
        took = time.monotonic() - begun
        print(flush=True)
        speed = f"{answer.tokens} tokens, {answer.tokens / took:.1f} tokens/s"
        print(speed, file=sys.stderr)
    print()
    return 0


def typed() -> Iterator[str]:
    """The prompts that are typed, until the input ends: that of a question, or a whole one.

    A whole one begins with ``[Round`` and goes on, as the guide types it, until a line ends in
    ``答：``; with ``\\n`` in place of line breaks it is one line.
    """
    while (line := _line("Please enter your predict data: ")) is not None:
        lines = [line]
        whole = line.startswith("[Round")
        while whole and "\\n" not in line and not lines[-1].rstrip().endswith("答："):
            following = _line("")
            if following is None:
                break
            lines.append(following)
        if whole:
            yield "\n".join(lines).replace("\\n", "\n")
        elif line.strip():
            yield build_prompt(line)


def _line(prompt: str) -> Optional[str]:
    """A line of the input; None at its end."""
    try:
        return input(prompt)
    except EOFError:
        return None


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _settings(options: argparse.Namespace) -> Optional[Settings]:
    if options.config is None:
        return None
    return load_settings(find_config(options.config), options.overrides)


def _graphs(
    options: argparse.Namespace, settings: Optional[Settings], environ: Mapping[str, str]
) -> Graphs:
    """The graphs of the command line, else those of the configuration."""
    given = (options.prefill_model_path, options.increment_model_path)
    if any(given):
        if not all(given):
            raise UsageError("--prefill_model_path and --increment_model_path belong together")
        # MindSpore's name of a large graph is accepted too: it is the one that is seen.
        return Graphs(*(path.with_name(path.name.replace("_graph.mindir", ".mindir"))
                        for path in given))  # fmt: skip
    if settings is None or settings.graphs is None:
        raise UsageError(
            "which graphs?",
            hint="give --config with the section infer, or --prefill_model_path and "
            "--increment_model_path",
        )
    base = Path(options.output_dir or environ.get("GLM2_OUTPUT_DIR", ""))
    graphs = settings.graphs.below(base)
    return graphs.int8() if options.int8 else graphs


def _check_guides_options(options: argparse.Namespace, config: ModelConfig) -> None:
    """Options of the guide's run_infer_main.py that say what is so anyway: refused if not."""
    if options.seq_length not in (None, config.seq_length):
        raise UsageError(
            f"--seq_length is {options.seq_length}, the graphs have {config.seq_length}",
            hint="leave it out: the graphs know it",
        )
    if options.is_sample_acceleration.lower() != "false":
        raise UsageError("--is_sample_acceleration has no counterpart here", hint="leave it out")
    if options.add_special_tokens.lower() != "true":
        raise UsageError("a prompt always begins with [gMASK] sop", hint="leave the option out")


_SAMPLING = (
    "do_sample", "top_k", "top_p", "temperature", "repetition_penalty", "max_decode_length",
)  # fmt: skip


def _network(graphs: Graphs, settings: Optional[Settings]) -> Tuple[ModelConfig, str]:
    """The network that was exported, with the sampling of the configuration if there is one, and
    the device that it was exported for."""
    try:
        manifest = json.loads(graphs.manifest.read_text("utf-8"))
        config, target = ModelConfig(**manifest["model_config"]), str(manifest["device_target"])
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {graphs.manifest}",
            hint="python -m glm2 export writes it with the graphs; they stay together",
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{graphs.manifest} is not of this version of glm2", hint="export the model again"
        ) from error
    if settings is not None:
        chosen = {key: getattr(settings.model, key) for key in _SAMPLING}
        config = dataclasses.replace(config, **chosen)
    return config, target


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glm2 infer",
        description="Answer with an exported model: --predict_data, or what is typed.",
        epilog="examples:\n"
        "  python -m glm2 infer --config export_glm2_6b --tokenizer tokenizer.model\n"
        "  python -m glm2 infer --prefill_model_path P.mindir --increment_model_path I.mindir "
        "--config_path lite.ini",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML with the section infer, or a shipped name")
    add("--prefill_model_path", type=Path, metavar="F", help="a graph in place of --config's")
    add("--increment_model_path", type=Path, metavar="F", help="the other one")
    add("--int8", action="store_true", help="the graphs that export --int8 wrote")
    add("--predict_data", metavar="S", action="append",
        help="text to answer, or a file with one on each line; may be repeated")  # fmt: skip
    add("--tokenizer", metavar="F", help="default: vocab_file of --config")
    add("--runtime", choices=RUNTIMES, help="default: lite where it is installed")
    add("--config_path", metavar="INI", help="MindSpore Lite's own configuration, as lite.ini")
    add("--device_target", choices=("CPU", "GPU", "Ascend"), help="default: that of --config")
    add("--device_id", type=int, metavar="N", help="default: that of --config")
    add("--output_dir", metavar="D", help="where the paths of --config begin, as for export")
    for name, default in (("is_sample_acceleration", "False"), ("add_special_tokens", "True")):
        add(f"--{name}", default=default, metavar=default,
            help=f"of the guide's command: {default}, nothing else")  # fmt: skip
    add("--seq_length", type=int, metavar="N",
        help="of the guide's command: that of the graphs, nothing else")  # fmt: skip
    add("--model_name", choices=tuple(RELEASED), help="of the guide's command; of no effect")
    add("--set", dest="overrides", action="append", default=[], metavar="K=V",
        help="set a key of --config, such as model.model_config.do_sample=True")  # fmt: skip
    return parser
