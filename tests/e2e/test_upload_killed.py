"""Uploads of which the client or the server is killed; `make chaos-upload` does it many times."""

from collections.abc import Iterator

import pytest
from tests.server_process import ServerProcess, server_home
from tests.upload_cuts import Cut, cut_upload, rows

SIZE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that is killed and started again on the same state."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("cuts")))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        Cut(who="client", at=0, part=False),
        Cut(who="client", at=700_001, part=False),
        Cut(who="client", at=300_003, part=True),
        Cut(who="server", at=500_000, part=False),
        Cut(who="server", at=900_000, part=True),
        Cut(who="server", at=2 * SIZE, part=False, wait=0.05),
    ],
    ids=lambda cut: f"{cut.who}-{cut.at}{'-part' if cut.part else ''}",
)
def test_a_cut_upload_is_whole_or_absent(server: ServerProcess, cut: Cut) -> None:
    """kill -9 of either side: what is listed has its bytes, and storage holds nothing besides."""
    assert cut_upload(server, cut, rows(cut.at, SIZE)) is None
