"""What README and docs say can be done can be done: snippets run, commands, options, paths and links exist."""

import ast
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.synthetic_results import write_model

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"(?P<skip><!-- not run: .+ -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
OTHERS = {"export", "source", "pip", "curl", "dvc", "prefect", "mlflow", "pytest", "torchrun", "pre-commit"}
PARTS = {"trl", "tasks", "flows", "tests", "benchmarks", "docs", "examples"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str, *, skipped: bool = False) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            if found["language"] == language and (skipped or not found["skip"]):
                yield page, found["code"]


def numbered(found: Iterator[tuple[Path, str]]) -> list[object]:
    return [pytest.param(code, id=f"{name(page)}-{i}") for i, (page, code) in enumerate(found)]


@pytest.mark.parametrize("code", numbered(blocks("python")))
def test_snippets_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "<snippet>", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("code", numbered(blocks("python", skipped=True)))
def test_what_snippets_import_exists(code: str) -> None:
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "<imports>", "exec"), {})


def commands() -> set[str]:
    """The commands of all shell blocks, and those in the text that start like one of this project's."""
    found: set[str] = set()
    for _, code in blocks("bash"):
        code = re.sub(r"<<'END'\n.*?^END$", "", code.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
        found |= {part.strip() for line in code.splitlines() for part in _without_comment(line).split("&&")}
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        found |= set(re.findall(r"`((?:python -m |python |make )[^`]+)`", prose))
    return found - {""}


def _without_comment(line: str) -> str:
    return re.split(r"(?:^|\s)#\s", line)[0]


def words(command: str) -> list[str]:
    """Without what the environment is given, and without redirections."""
    found = shlex.split(command)
    while re.match(r"[A-Z_]+=", found[0]):
        found = found[1:]
    return found


@cache
def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints."""
    if module in ("pytest", "venv"):
        return subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
        ).stdout
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.delitem(sys.modules, module, raising=False)  # runpy warns of one that is imported already
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    return shown.getvalue()


def check_options(module: str, given: list[str]) -> None:
    shown = help_of(module)
    assert shown, f"python -m {module} --help prints nothing"
    for option in given:
        if option.startswith("-") and option != "-":
            assert re.search(rf"(^|[\s,\[]){re.escape(option.split('=')[0])}\b", shown), f"{module} has no {option}"


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_exist(command: str) -> None:
    program, *rest = words(command)
    if program == "make":
        target, *arguments = rest
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for argument in arguments:
            variable, _, value = argument.partition("=")
            assert re.search(rf"^{variable} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
            if variable == "ARGS":
                check_options({"run": "flows.full", "test": "pytest"}[target], shlex.split(value))
    elif program == "python" and rest[0] == "-m":
        check_options(rest[1], rest[2:])
    elif program == "torchrun":
        check_options("tasks.train", rest[rest.index("tasks.train") + 1 :])
    elif program == "python":
        assert rest[0] == ">" or (ROOT / rest[0]).is_file()
    else:
        assert program in OTHERS


@pytest.mark.e2e
@pytest.mark.parametrize("command", sorted(c for c in commands() if words(c)[0] in ("dvc", "prefect", "mlflow")))
def test_commands_of_the_tools_exist(command: str) -> None:
    program, *rest = words(command)
    names = [word for word in rest if re.fullmatch("[a-z]+", word)][: 2 if program != "dvc" or "diff" in rest else 1]
    done = subprocess.run(
        [sys.executable, "-m", program, *names, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in rest:
        assert not option.startswith("-") or option in done.stdout


def test_programs_in_shell_blocks_compile() -> None:
    found = [code for _, block in blocks("bash") for code in re.findall(r"<<'END'\n(.*?)^END$", block, re.M | re.S)]
    assert found
    for code in found:
        compile(code, "<program>", "exec")


def test_options_of_the_evaluation_exist() -> None:
    page = (ROOT / "docs/how-to/evaluate.md").read_text()
    options = re.findall(r"`(--[a-z-]+)", page)
    assert len(options) > 5
    check_options("trl.cli.evaluate", options)


def test_keys_of_params_exist() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    keys = {key for page in PAGES for key in re.findall(r"(recipes\.[\w.]+)=", page.read_text())}
    assert keys
    for key in keys:
        value = params
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+[\w.]*)`", page.read_text()):
        if path.split("/")[0] in PARTS:
            assert (ROOT / path).exists(), path
    if page.parent != ROOT / "docs" and "docs" not in page.parts[:-1]:  # mkdocs checks the links of its pages
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_is_wrapped(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text()).splitlines()
    assert not [line for line in prose if len(line) > 100 and not line.startswith(("|", "![", "<!--"))]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("um", "at", "alp", "tla"):
        write_model(tmp_path / f"metrics/digits/{method}-0", method, 0)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "docs/figures.py"))
    script["main"].__globals__["IMAGES"] = tmp_path / "images"
    script["main"]()
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/images").iterdir()}
