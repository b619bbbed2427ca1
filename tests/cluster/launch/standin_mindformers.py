"""Stands in for MindFormers' ``run_mindformer.py``: its options, output folders and log format.

It keeps what it was started with in ``seen.json``, and logs four steps as MFLossMonitor does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import yaml
from mindformers import VERSION  # found by PYTHONPATH alone

OPTIONS = ("config", "run_mode", "use_parallel", "device_id", "load_checkpoint", "predict_data")


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in OPTIONS:
        parser.add_argument(f"--{option}")
    options = parser.parse_args()
    config = yaml.safe_load(Path(options.config).read_text())
    seen = {"argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "config": config}
    Path("seen.json").write_text(json.dumps({**seen, "version": VERSION}))
    logger = logging.getLogger("mindformers")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    text = "%(asctime)s - mindformers[mindformers/core/callback/callback.py:314] - %(levelname)s - "
    handler.setFormatter(logging.Formatter(text + "%(message)s"))
    logger.addHandler(handler)
    rank = os.environ["RANK_ID"]
    for step in range(1, 5):
        logger.info(
            "{ Epoch:[%3d/%3d], step:[%5d/%5d], loss: %5.3f, per_step_time: %dms, lr: %s, "
            "overflow cond: %s, loss_scale: %s",
            *(1 + (step - 1) // 2, 2, 1 + (step - 1) % 2, 2, 4.0 - step / 2, 412, 5e-05),
            *(False, 65536.0),
        )
        logger.info(
            " %4.1f%% |%-50s| %.5f samples/s/p  %s }", 25 * step, "█" * step, 2.4, "0:00:01"
        )
    folder = Path(config["output_dir"], "checkpoint", f"rank_{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    Path(folder, f"glm2_6b_rank_{rank}-2_2.ckpt").write_bytes(b"")


if __name__ == "__main__":
    main()
