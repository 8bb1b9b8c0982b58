"""What README and docs/ show: code blocks run, links lead somewhere, and what is drawn or listed is current.

The blocks of a page run from top to bottom. ``python`` blocks share one namespace. In ``console`` blocks what follows
``$`` is a command, and what follows that, if anything does, is what it prints: ``...`` stands for any lines, times and
rates may differ. ``sh`` blocks hold commands alone, to copy.
A block below ``<!-- not run: REASON -->`` is compiled, or its commands parsed, and no more. ``/tmp`` is a folder of the
page's own.
"""

import contextlib
import doctest
import io
import os
import pkgutil
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import awqpack
from awqpack import cli
from awqpack.layouts.registry import SOURCES

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning", "ignore::DeprecationWarning:torch"
)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(
    r"^(?:[ \t]*<!-- not run: (?P<reason>[^\n]+) -->\n+)?"
    r"(?P<indent>[ \t]*)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)\n(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
SHOWN = {"text", "json"}  # languages of which there is nothing to run
VARYING = re.compile(r"\d+(?:\.\d+)? (?:[kMG]?B/|m?)s\b")


class Block(NamedTuple):
    language: str
    body: str
    line: int  # of the page, that the body begins at
    reason: str | None  # why it is not run


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        body, language = textwrap.dedent(match["body"]), match["language"]
        if language == "sh":
            body, language = re.sub("^", "$ ", body, flags=re.MULTILINE), "console"
        yield Block(language, body, line, match["reason"])


def commands(block):
    """Each command of a console block, its line of the page, and the lines that it is to print."""
    found = []
    for number, text in enumerate(block.body.split("\n"), block.line):
        if text.startswith("$ "):
            found += [(command, number, []) for command in text[2:].split("; ")]
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (found[-1][0][:-1] + text.strip(), *found[-1][1:])
        else:
            assert found, f"line {number}: a console block begins with a command, behind '$ '"
            found[-1][2].append(text)
    return found


def compiled(block, page):
    """The code of a python block, which tracebacks show where it stands on its page."""
    return compile("\n" * (block.line - 1) + block.body, str(page), "exec")


def words_of(command):
    return shlex.split(command, comments=True)


def parse(command):
    """Checks a command that is not run: awqpack's options, and the targets of make."""
    words = words_of(command)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for target in (word for word in words[1:] if "=" not in word):
            assert target in targets or target.startswith("bench-"), f"make has no target {target}"
    if "awqpack" in words and words[0] != "pip":
        arguments = words[words.index("awqpack") + 1 :]
        subcommand = cli._awqpack.commands[arguments[0]]
        with contextlib.suppress(click.exceptions.Exit):
            subcommand.make_context(arguments[0], arguments[1:], parent=click.Context(cli._awqpack))


def run(command):
    """What a command prints. Everything runs in this process, which has torch already."""
    words = words_of(command)
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        if words[0] == "awqpack":
            status = cli.main(words[1:])
        else:
            assert words[0] == "python", f"{command}: say why it is not run (<!-- not run: REASON -->)"
            status = run_script(ROOT / words[1], words[2:])
    assert status == 0, f"{command}: exit status {status}\n{out.getvalue()}"
    return out.getvalue()


def run_script(path, arguments):
    argv, sys.argv = sys.argv, [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    finally:
        sys.argv = argv
    return 0


def assert_printed(command, where, expected, printed):
    expected, printed = (VARYING.sub("N", text.strip("\n") + "\n") for text in (expected, printed))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    is_same = doctest.OutputChecker().check_output(expected, printed, flags)
    assert is_same, f"{where}: {command} prints\n{printed}where the page has\n{expected}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_blocks(name, folder):
    page = ROOT / name
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        here = block._replace(body=block.body.replace("/tmp", str(folder)))
        if block.language == "python":
            code = compiled(here, page)
            if block.reason is None:
                exec(code, namespace)
        elif block.language == "console":
            for command, line, expected in commands(here):
                if block.reason is not None:
                    parse(command)
                    continue
                printed = run(command)
                if expected:
                    assert_printed(command, f"{name}, line {line}", "\n".join(expected), printed)
        else:
            where = f"{name}, line {block.line}"
            assert block.language in SHOWN, (
                f"{where}: expects python, console, sh, text or json; got {block.language!r}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text):
        path = target.split("#")[0]
        if path and not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / path).exists(), f"{name}: there is no {target}"


def test_the_api_is_complete():
    """Every public name is on a page of docs/api, and every name there is one."""
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    paths = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    for path in paths:
        pkgutil.resolve_name(path)
    named = {path.rpartition(".")[2] for path in paths}
    ours = {*awqpack.__all__, *awqpack.checkpoint.__all__} - {"__version__", "rebuild_packed_tensor"}
    assert ours - named == set()


def test_every_layout_is_in_the_table():
    table = (ROOT / "docs" / "layouts.md").read_text().split("## From any layout")[0]
    assert {name for name in SOURCES if f"`{name}`" not in table} == set()


def test_every_target_of_make_is_listed():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = (ROOT / "CONTRIBUTING.md").read_text()
    assert [target for target in targets if f"`{target}`" not in listed] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_pictures_and_tables_are_current(monkeypatch):
    """Drawn from the rows of packings and layouts as they are now."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import generate

    assert generate.stale() == [], "python docs/scripts/generate.py draws them anew"
