"""A planted secret is in nothing that a user, a log or a store gets to see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.redaction import error_line, redacted
from tasks.stage import Stage
from tasks.tracking import pages
from tests.helpers import ROOT
from trl.common.errors import TrlError
from trl.config import load_params

PLAIN, ENCODED = "s3cr@t/w?rd", "s3cr%40t%2Fw%3Frd"
ADDRESSES = (  # nobody listens there, or nobody could
    f"http://user:{ENCODED}@127.0.0.1:9",
    f"http://user:{PLAIN}@127.0.0.1:9",
    f"http://{ENCODED}@127.0.0.1:9",
    f"http://127.0.0.1:9/?token={ENCODED}",
    f"postgresql://user:{ENCODED}@127.0.0.1:9/runs",
    f"unknown://user:{ENCODED}@127.0.0.1:9/runs",
    f"sqlite://user:{ENCODED}@127.0.0.1:9/runs",
)
USE_STORE = """
import os
from tasks.stage import Stage, run_stage
from tasks.live import ModelRun
from tasks.tracking import pages
from trl.common.errors import TrlError, in_one_line
from tasks.store import client_and_experiment

def work(stage):
    '''Use the store in every way.'''
    ModelRun(Stage(stage.params, "digits", "um", 0), "f").begin()
    print(pages(stage, "0"))
    try:
        client_and_experiment(stage)
    except Exception as error:
        raise TrlError(in_one_line(error)) from error

for address in {addresses}:
    os.environ["MLFLOW_TRACKING_URI"] = address
    assert run_stage(work, per_model=False, arguments=[], as_written=True) == 1
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://user:pw@host:5000/a?b=c", "at http://host:5000/a?b=c"),
        ("postgresql+psycopg2://u:p%40w@h/db failed", "postgresql+psycopg2://h/db failed"),
        ("'https://ghp_1234@github.com/a/b.git'", "'https://github.com/a/b.git'"),
        ("get https://h/x?token=abc&n=3 and ?a=1&password=x", "get https://h/x?token=***&n=3 and ?a=1&password=***"),
        (
            "http://h/#/runs?orderByKey=metrics&viewStateShareKey=k",
            "http://h/#/runs?orderByKey=metrics&viewStateShareKey=k",
        ),
        ("models:/name@champion, me@example.org", "models:/name@champion, me@example.org"),
        ("two http://a:b@c, http://d:e@f", "two http://c, http://f"),
    ],
)
def test_an_address_is_shown_without_its_credentials(text: str, shown: str) -> None:
    assert redacted(text, {}) == shown


@pytest.mark.parametrize("form", [PLAIN, ENCODED])
@pytest.mark.parametrize(
    "environ",
    [
        *({"ANY": address} for address in ADDRESSES),
        {"MLFLOW_TRACKING_PASSWORD": PLAIN},
        {"MLFLOW_TRACKING_TOKEN": PLAIN},
        {"AWS_SECRET_ACCESS_KEY": ENCODED},
    ],
)
def test_a_secret_of_the_environment_is_hidden_anywhere(environ: dict[str, str], form: str) -> None:
    assert redacted(f"login failed: {form!r}", environ) == "login failed: '***'"


def test_what_is_no_secret_stays() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "false", "EMPTY_TOKEN": "", "SHORT_KEY": "a", "URL": "http://host:5000/a"}
    assert redacted("a false host:5000", environ) == "a false host:5000"


@pytest.mark.e2e
def test_no_output_and_no_file_holds_the_password_of_a_store_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-c", USE_STORE.format(addresses=ADDRESSES)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_TOKEN": "t0ken-x",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = done.stdout + "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert done.returncode == 0, said
    assert done.stdout.count("warning: MLflow was not updated") == 2 * len(ADDRESSES)
    assert done.stdout.count("error: ") == len(ADDRESSES)
    assert not [form for form in ("s3cr", "w%3Frd", "w?rd", "t0ken-x") if form in said], said


def test_the_link_to_the_store_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.client_and_experiment", lambda stage: (None, "1"))  # there is no such store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{ENCODED}@host:5000/")
    stage = Stage(load_params(ROOT / "params.yaml", as_written=True), "digits", "um", 0)
    found = pages(stage, "0")
    assert len(found) == 2
    assert all(page.startswith("http://host:5000/#/experiments/1/runs") for page in found.values())


@pytest.mark.e2e  # in a process of its own, since MLflow looks once
def test_the_address_of_the_repository_is_recorded_without_its_password(tmp_path: Path) -> None:
    main = tmp_path / "main.py"
    main.write_text("from tasks.runs import with_context; print(with_context({'a': 'b'}))")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in ("init -q", f"remote add origin https://user:{ENCODED}@127.0.0.1/a.git", "add .", "commit -qm a"):
        subprocess.run(["git", *identity, *command.split()], cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, str(main)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "'a': 'b'" in said
    assert "'mlflow.source.git.repoURL': 'https://127.0.0.1/a.git'" in said


def test_an_error_is_one_line_with_its_remedy_and_without_credentials() -> None:
    assert error_line(TrlError(f"no server at http://user:{ENCODED}@host/")) == "error: no server at http://host/"
    refused = error_line(OSError(28, "No space left on device", "a.json"))
    remedy = "free space or check permissions, then repeat the command"
    assert refused == f"error: a.json: No space left on device: {remedy}"
