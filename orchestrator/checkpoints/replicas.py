"""Which ranks' files hold the same slices, so that one of them is enough. Pure."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Tuple

from orchestrator.checkpoints.catalogue import CheckpointFile
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.strategy import Strategy


def replica_groups(
    files: Mapping[int, CheckpointFile], strategy: Optional[Strategy]
) -> List[Tuple[CheckpointFile, ...]]:
    """Files of one step, grouped by what they should hold, in the order of their ranks.

    By ``strategy`` the files of a group hold the same slice of every parameter; without one all
    ranks hold everything. Files of different size are not the same, whatever a strategy says: a
    save that left redundant slices out has such.
    """
    groups: Dict[object, List[CheckpointFile]] = {}
    layouts: Dict[int, List[Layout]] = {}
    for rank, file in sorted(files.items()):
        key: object = ()
        if strategy is not None:
            stage, local = divmod(rank, strategy.stage_ranks)
            if stage not in layouts:
                layouts[stage] = list(dict.fromkeys(strategy.stages[stage].values()))
            key = (stage, tuple(layout.position(local) for layout in layouts[stage]))
        groups.setdefault((key, file.size), []).append(file)
    return [tuple(group) for group in groups.values()]
