"""The served page of a tiny model in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.cluster.needs import need
from tests.cluster.page import opened
from tests.served import make_model, served
from ttt_dist.data.speakers import SPEAKERS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("chromium")
    folder = make_model(tmp_path_factory.mktemp("served"))
    (folder / SPEAKERS).write_text(json.dumps({"speakers": ["ann", "bob"]}))
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with served(model) as (address, _):
        yield address


@pytest.fixture
def page(url: str) -> Iterator[Browser]:
    with Browser() as browser:
        opened(browser, url)
        yield browser
        assert browser.errors == []
