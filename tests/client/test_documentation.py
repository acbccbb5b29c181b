"""What the documentation shows is run as it is printed, against a real server."""

from __future__ import annotations

import asyncio
import doctest
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import client as shelfwise
from client import client as surface
from serving.server import TritonServer

README = Path(shelfwise.__file__).parent / "README.md"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that examples name, in the working directory."""
    for name in ("shoe.jpg", "1.jpg", "2.jpg"):
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photos")
def test_examples_of_docstrings(contract_server: TritonServer) -> None:
    examples = [found for found in doctest.DocTestFinder().find(surface) if found.examples]
    assert len(examples) >= 10
    with shelfwise.ShelfwiseClient(contract_server.url) as client:
        for example in examples:
            example.globs = vars(shelfwise) | {"client": client, "url": contract_server.url, "asyncio": asyncio}
            report: list[str] = []
            failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
            assert not failed, "".join(report)


@pytest.mark.usefixtures("photos")
def test_examples_of_the_readme(contract_server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block sees the names of those before it; addresses are replaced by the test server's."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    for file in ("ca.pem", "client.key", "client.crt"):  # read, and of no use without a connection
        Path(file).touch()
    names: dict[str, object] = {"items": [(None, "a"), (None, None)], "asyncio": asyncio}
    for block in blocks:
        code = block.replace("shelfwise_client", "client").replace("http://127.0.0.1:8000", contract_server.http_url)
        code = re.sub(r"127\.0\.0\.1:[89]001", contract_server.url, code)
        with shelfwise.ShelfwiseClient(contract_server.url) as client:
            names["client"] = client
            exec(compile(code, "README.md", "exec"), names)
    assert "A > a" in capsys.readouterr().out
    assert names["several"].is_ready()  # type: ignore[attr-defined]
