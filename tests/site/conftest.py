"""One server of the page for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Served, start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = start(tmp_path_factory.mktemp("served"))
    yield server
    assert server.stop() == 0
