"""The built-in table, loaded once."""

from __future__ import annotations

import pytest

from orchestrator.diagnosis.signatures import load_table


@pytest.fixture(scope="session")
def table():
    return load_table()
