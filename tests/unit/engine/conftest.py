from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from tests.unit.engine.hosts import ONE_COPY, Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, ONE_COPY)
    yield made
    made.close()
