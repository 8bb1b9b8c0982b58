"""The rooms of csrc/python, as its README's table lists them: no file knows one above it, and no function is long."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "csrc" / "python"
LONGEST = 80  # lines of a function
COMMENT_OR_TEXT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
FUNCTION = re.compile(r"^(?P<head>[A-Za-z][^;{}#=]*\))\s*\n\{\n(?P<body>.*?)^\}", re.DOTALL | re.MULTILINE)
VARIABLE = re.compile(r"^(?!static|extern|typedef|struct|enum)\w[\w *]*?\b(\w+)(?:\[\])?(?: =[^;]*)?;$", re.MULTILINE)

Files = dict[str, str]  # name -> text


def rooms() -> tuple[dict[str, int], list[set[int]]]:
    """The room of each file, bottom 0, and for each room those that it may include."""
    room_of: dict[str, int] = {}
    numbers: dict[str, int] = {}
    below: list[set[int]] = []
    for line in (FOLDER / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"\*\*\w+\*\*", cells[0]):
            room_of |= dict.fromkeys(re.findall(r"`(\w+\.[ch])`", cells[1]), len(below))
            below.append({numbers[name] for name in re.findall(r"\w+", cells[3])})  # KeyError: not a room below
            numbers[cells[0].strip("*")] = len(numbers)
    return room_of, below


def sources() -> Files:
    return {path.name: path.read_text() for path in sorted(FOLDER.glob("*.[ch]"))}


def includes(text: str) -> set[str]:
    return set(re.findall(r'^#include "([^"/]+)"', text, re.MULTILINE))


def defines(text: str) -> set[str]:
    """Functions and variables that a file offers to others."""
    code = COMMENT_OR_TEXT.sub("", text)
    heads = [match["head"] for match in FUNCTION.finditer(code)]
    functions = {re.search(r"(\w+)\s*\(", head)[1] for head in heads if not head.startswith("static")}
    return functions | set(VARIABLE.findall(FUNCTION.sub("", code)))


def uses(files: Files) -> dict[str, set[str]]:
    """For each C file those that define what it names."""
    code = {name: COMMENT_OR_TEXT.sub("", text) for name, text in files.items() if name.endswith(".c")}
    owner = {symbol: name for name in code for symbol in defines(files[name])}
    words = {name: set(re.findall(r"\w+", text)) for name, text in code.items()}
    return {name: {owner[word] for word in words[name] & owner.keys()} - {name} for name in code}


def circle(files: Files) -> list[str] | None:
    """Files that include or use each other in a circle."""
    for graph in ({name: includes(text) & files.keys() for name, text in files.items()}, uses(files)):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return list(error.args[1])
    return None


def long_functions(text: str) -> list[str]:
    return [match["head"] for match in FUNCTION.finditer(text) if match[0].count("\n") + 1 > LONGEST]


def test_every_file_is_in_a_room():
    assert rooms()[0].keys() == sources().keys()


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_file_knows_only_its_room_and_those_it_may_include(name):
    room_of, below = rooms()
    known = {room_of[other] for other in includes(sources()[name]) | uses(sources()).get(name, set())}
    assert known <= below[room_of[name]] | {room_of[name]}


def test_no_circle_between_files():
    assert circle(sources()) is None


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.[ch]*")), ids=lambda path: path.name)
def test_no_long_function(path):
    assert long_functions(path.read_text()) == []


UP = "int up(void)\n{\n    return down();\n}\n"
DOWN = "int down(void)\n{\n    return level;\n}\n"
CALLS_UP = "/* up */\nint level = 1;\n\nint down(void)\n{\n    return up();\n}\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"up.c": UP, "down.c": DOWN, "level.c": "int level = 1;\n"}, False),
        ({"up.c": UP, "down.c": DOWN, "level.c": "int level = 1; /* of up() */\n"}, False),
        ({"up.c": UP, "down.c": CALLS_UP}, True),
        ({"up.c": UP + "int level;\n", "down.c": DOWN}, True),
        ({"up.h": '#include "down.h"\n', "down.h": '#include "up.h"\n'}, True),
        ({"up.h": '#include "down.h"\n', "down.h": "#include <string.h>\n"}, False),
    ],
    ids=["none", "comment", "functions", "variable", "headers", "header"],
)
def test_circles_are_found(files, found):
    assert (circle(files) is not None) == found


@pytest.mark.parametrize(("lines", "is_long"), [(LONGEST, False), (LONGEST + 1, True)])
def test_long_functions_are_found(lines, is_long):
    text = "static int f(int a,\n             int b)\n{\n" + "    a++;\n" * (lines - 4) + "}\n"
    assert bool(long_functions(text)) == is_long
