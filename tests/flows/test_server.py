"""What the temporary server says where it cannot start."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from flows.server import TemporaryServer
from trl.common.errors import TrlError


@pytest.mark.e2e
def test_a_server_that_cannot_write_says_why_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    database = f"sqlite+aiosqlite:///{tmp_path}/file/prefect.db"
    with temporary_settings(updates={PREFECT_SERVER_DATABASE_CONNECTION_URL: database}):
        server = TemporaryServer()
        with pytest.raises(
            TrlError, match=r"did not start \(.*database file\): free space, check permissions"
        ) as caught:
            server.wait()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())
