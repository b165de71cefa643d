"""DVC's stages by DVC's library: which there are, which are up to date, and how results come back to the project."""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile

from flows.snapshot import Snapshot
from trl.common.errors import TrlError
from trl.common.files import write_atomic

logging.getLogger("dvc").setLevel(logging.WARNING)  # not each file that it writes
_ONE_AT_A_TIME = threading.Lock()  # DVC's lock is one of processes, and its library is not made for threads


class Pipeline:
    """The stages of dvc.yaml in a `snapshot` of the project: with those they need, in topological order, in `graph`.

    `left`: why results of stages did not come back to the project.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        """Read dvc.yaml and dvc.lock; TrlError if DVC cannot."""
        self.snapshot = snapshot
        self.left: dict[str, str] = {}
        try:
            self.repo = _repo(snapshot.root)
            stages, graph = _stages(self.repo), self.repo.index.graph
        except DvcException as error:
            raise TrlError(f"dvc.yaml: {_line(error)}") from None
        self.graph = in_order({name: [_address(n) for n in graph.successors(stage)] for name, stage in stages.items()})

    def up_to_date(self) -> list[str]:
        """The stages that need not run, whose outputs are linked into the snapshot from the cache."""
        found: list[str] = []
        with lock_repo(self.repo):
            stages = _stages(self.repo)
            for name, needs in self.graph.items():
                if set(needs) <= set(found) and _is_current(stages[name]):
                    found.append(name)
        return found

    def inputs(self, name: str) -> str:
        """A hash of all that a stage depends on, as it is now in the snapshot."""
        with _ONE_AT_A_TIME, lock_repo(self.repo):
            stage = _stages(self.repo)[name]
            if not stage.cmd:  # data that DVC tracks
                return name
            stage.save_deps(allow_missing=True)
            recorded = {**to_single_stage_lockfile(stage), "outs": None}
        return hashlib.sha256(json.dumps(recorded, sort_keys=True, default=str).encode()).hexdigest()

    def bring_back(self, names: Iterable[str]) -> None:
        """Give the project the results of these stages, in topological order, and their entries in dvc.lock.

        Only what its params.yaml and code ask for: a stage whose inputs there are not those that it ran with is left
        out. Nothing runs.
        """
        project = self.snapshot.project
        with _ONE_AT_A_TIME, contextlib.closing(_repo(project)) as theirs, lock_repo(theirs), lock_repo(self.repo):
            try:
                ran, wanted = _stages(self.repo), _stages(theirs)
            except DvcException as error:  # someone is editing dvc.yaml or params.yaml
                self.left.update(dict.fromkeys(names, _line(error)))
                return
            for name in names:
                self.left.pop(name, None)
                try:
                    why = _give(ran[name], wanted[name]) if name in wanted else "params.yaml does not select it"
                except (DvcException, OSError) as error:
                    why = _line(error)
                if why:
                    self.left[name] = why

    def close(self) -> None:
        """Close DVC's databases."""
        self.repo.close()


def in_order(needs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The stages with those they need, in topological order."""
    return {name: needs[name] for name in TopologicalSorter(needs).static_order()}


def _repo(root: Path) -> Repo:
    return Repo(str(root), _wait_for_lock=True)


def _is_current(stage: Stage) -> bool:
    """Whether the inputs are those in dvc.lock and the outputs are in the cache, from which they are linked."""
    if stage.changed_stage() or stage.changed_deps() or not _in_cache(stage):
        return False
    stage.checkout(force=True)
    return not stage.changed_outs()


def _in_cache(stage: Stage) -> bool:
    return all(out.hash_info and not (out.use_cache and out.changed_cache()) for out in stage.outs)


def _stages(repo: Repo) -> dict[str, Stage]:
    """All stages by their names, as dvc.yaml and dvc.lock have them now."""
    return {_address(stage): stage for stage in repo.index.stages}


def _address(stage: Stage) -> str:
    """What a stage is called, whatever the current folder is."""
    name, path = getattr(stage, "name", ""), stage.path_in_repo
    return name if path == "dvc.yaml" else f"{path}:{name}" if name else path


def _give(ran: Stage, stage: Stage) -> str:
    """Bring what `ran` to the same `stage` of the project: outputs, and its entry in dvc.lock; "", or why not."""
    if not ran.cmd:  # data that DVC tracks
        return ""
    recorded = to_single_stage_lockfile(ran)
    if to_single_stage_lockfile(stage) == recorded and not stage.changed():
        return ""
    StageLoader.fill_from_lock(stage, recorded)
    stage.cmd_changed = stage.cmd != ran.cmd
    same_outs = [out.def_path for out in stage.outs] == [out.def_path for out in ran.outs]
    if stage.changed_stage() or not same_outs or stage.changed_deps():
        return "its inputs have changed"
    if not _in_cache(stage):
        return "its results are no longer in DVC's cache"
    stage.checkout(force=True)
    for mine, its in zip(ran.outs, stage.outs, strict=True):
        if not its.use_cache:
            write_atomic(Path(its.fspath), Path(mine.fspath).read_bytes())
    stage.dump(update_pipeline=False)
    return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
