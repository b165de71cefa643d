"""A snapshot is the project with its uncommitted changes, which nothing that is edited later reaches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.snapshot import FOLDER, LOCKS, snapshot
from trl.common.errors import TrlError


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed project with edits of each kind."""
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q")
    for name, text in {
        "params.yaml": "recipe: a",
        "code.py": "",
        "gone.py": "",
        ".gitignore": "ignored\n.dvc/tmp\n.dvc/config.local\ncheckpoints/\nmlflow.db*\n",
        ".dvc/config": "",
        "data/.gitignore": "*",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def edit(project: Path) -> None:
    (project / "params.yaml").write_text("recipe: b")
    (project / "code.py").write_text("staged")
    git(project, "add", "code.py")
    (project / "new.py").write_text("untracked")
    (project / "ignored").write_text("")
    (project / "gone.py").unlink()


def snapshots(project: Path) -> list[str]:
    return [each.name for each in (project / FOLDER).iterdir() if each.name != LOCKS]


def test_it_has_the_uncommitted_changes_and_leaves_index_and_branch_as_they_are(project: Path) -> None:
    edit(project)
    before = (git(project, "status", "--porcelain"), git(project, "log", "--format=%H"), git(project, "branch", "-a"))
    with snapshot(project) as made:
        (project / "params.yaml").write_text("recipe: c")
        assert (made.root / "params.yaml").read_text() == "recipe: b"
        assert (made.root / "code.py").read_text() == "staged"
        assert (made.root / "new.py").exists()
        assert not (made.root / "ignored").exists()
        assert not (made.root / "gone.py").exists()
        (made.root / "params.yaml").write_text("recipe: d")
        assert (project / "params.yaml").read_text() == "recipe: c"
    (project / "params.yaml").write_text("recipe: b")
    after = (git(project, "status", "--porcelain"), git(project, "log", "--format=%H"), git(project, "branch", "-a"))
    assert after == before
    assert snapshots(project) == []
    assert len(git(project, "worktree", "list").splitlines()) == 1


def test_without_changes_it_is_the_commit_that_the_user_made(project: Path) -> None:
    with snapshot(project) as made:
        assert git(made.root, "rev-parse", "HEAD") == git(project, "rev-parse", "HEAD")


def test_checkpoints_data_store_and_cache_are_the_project_s(project: Path) -> None:
    (project / "data/flowers").mkdir()
    with snapshot(project) as made:
        assert (made.root / "data/flowers").is_dir()
        (made.root / "checkpoints/new").touch()
        (made.root / "mlflow.db").write_text("store")
        assert str(project / ".dvc/cache") in (made.root / ".dvc/config.local").read_text()
    assert (project / "checkpoints/new").exists()
    assert (project / "mlflow.db").read_text() == "store"
    assert (project / "data/flowers").is_dir()


def test_settings_of_this_machine_come_along(project: Path, tmp_path: Path) -> None:
    (project / ".dvc/config.local").write_text(f"[core]\n    remote = mine\n[cache]\n    dir = {tmp_path}/elsewhere\n")
    with snapshot(project) as made:
        text = (made.root / ".dvc/config.local").read_text()
    assert "remote = mine" in text
    assert f"dir = {tmp_path}/elsewhere" in text


def test_a_project_below_the_repository_and_one_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    project = tmp_path / "below/it"
    (project / ".dvc").mkdir(parents=True)
    (project / "params.yaml").write_text("recipe: a")
    with snapshot(project) as made:
        assert (made.root / "params.yaml").read_text() == "recipe: a"


def test_hooks_do_not_run(project: Path) -> None:
    hook = project / ".git/hooks/post-checkout"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with snapshot(project) as made:
        assert made.root.exists()


def test_a_failure_inside_removes_it_too(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), snapshot(project):
        raise KeyboardInterrupt
    assert snapshots(project) == []


def test_without_git_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrlError, match="git init") as error, snapshot(tmp_path):
        pass
    assert "\n" not in str(error.value)


def test_what_a_killed_run_left_is_removed_by_the_next_unless_something_works_there(project: Path) -> None:
    code = (
        "import os, subprocess, sys; from pathlib import Path; from flows.snapshot import snapshot\n"
        "with snapshot(Path(sys.argv[1])) as made:\n"
        "    child = subprocess.Popen(['sleep', '60'], cwd=made.root, pass_fds=[made.lock], stdout=-3)\n"
        "    print(made.root, child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(project)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    left, child = killed.stdout.split()
    with snapshot(project) as made:
        assert sorted(snapshots(project)) == sorted(
            f"{Path(p).name}{s}" for p in (left, made.root) for s in ("", ".lock")
        )
    assert Path(left, "params.yaml").exists()  # its stage still runs
    os.kill(int(child), 9)
    while Path(f"/proc/{child}/fd").exists() and list(Path(f"/proc/{child}/fd").iterdir()):
        pass
    with snapshot(project):
        assert not Path(left).exists()
    assert snapshots(project) == []


def test_the_same_work_is_done_by_one_run_at_a_time(project: Path) -> None:
    waits: list[str] = []

    def given_up() -> bool:
        return len(waits) > 0

    with snapshot(project) as one, snapshot(project) as two:
        with one.alone("train", lambda: False, waits.clear) as lock:
            assert lock is not None
            with two.alone("train", given_up, lambda: waits.append("waits")) as refused:
                assert refused is None
            with two.alone("attack", given_up, waits.clear) as other:
                assert other is not None
        with two.alone("train", lambda: False, waits.clear) as now:
            assert now is not None
    assert waits == ["waits"]


def test_places_relative_to_the_project_stay_where_they_are(project: Path) -> None:
    with snapshot(project) as made:
        assert made.environment({}) == {}
        given = {"TRL_RAW_DATA": "raw", "MLFLOW_TRACKING_URI": "sqlite:///runs.db"}
        assert made.environment(given) == {
            "TRL_RAW_DATA": f"{project}/raw",
            "MLFLOW_TRACKING_URI": f"sqlite:///{project}/runs.db",
        }
        assert made.environment({"TRL_RAW_DATA": "/raw", "MLFLOW_TRACKING_URI": "http://host:5000"}) == {
            "TRL_RAW_DATA": "/raw"
        }
