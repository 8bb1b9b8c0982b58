"""Draws the pictures of packings and layouts, and writes what pages say between ``<!-- generated:NAME -->`` markers.

python docs/scripts/generate.py           # writes what has changed
python docs/scripts/generate.py --check   # exit status 1 when something is stale
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pictures
import torch

from awqpack.formats import FORMATS
from awqpack.layouts import LAYOUTS, Geometry, Layer, Layout, LayoutError, QuantizationConfig
from awqpack.peers import PEERS, exchange_of

DOCS = Path(__file__).parent.parent
ASSETS = DOCS / "assets"
MARKED = re.compile(r"(<!-- generated:([\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
N, K, GROUP = 1024, 4096, 128  # of the layer whose tensors are listed


def _layer(zero: int = 8, n: int = 64, k: int = 128, group: int = 32, scale: float = 1.0, order: bool = False) -> Layer:
    """A layer that only some layouts hold."""
    scales = torch.full((n, k // group), scale, dtype=torch.float16)
    turned = torch.arange(k, dtype=torch.int32).flip(0) // group if order else None
    return Layer(
        torch.zeros(n, k, dtype=torch.uint8), scales, torch.full_like(scales, zero).to(torch.uint8), group, None, turned
    )


# What some layout cannot hold: a mark, what it is, and a layer that has it.
LIMITS = (
    ("s", "zeros other than 8", _layer(zero=7)),
    ("z", "a zero of 0", _layer(zero=0)),
    ("n", "out_features that are no multiple of 8", _layer(n=60)),
    ("k", "in_features that are no multiple of 64", _layer(k=96)),
    ("g", "groups of another size than 32, 64 or 128", _layer(k=1024, group=256)),
    ("e", "a zero beside a scale of 0", _layer(scale=0.0)),
    ("o", "columns that are not in the order of their groups (`desc_act`)", _layer(order=True)),
)


def _reasons(layout: Layout) -> dict[str, str]:
    """What a layout says of each layer that it does not hold, by the limit's mark."""
    found = {}
    for mark, _, layer in LIMITS:
        try:
            layout.encode(layer)
        except LayoutError as error:
            found[mark] = str(error).removeprefix(f"{layout.name} cannot hold the layer: ")
    return found


def _is_said_by_another(mark: str, reasons: dict[str, str]) -> bool:
    """0 is another zero than 8, too."""
    return mark == "z" and "s" in reasons


REASONS = {name: _reasons(layout) for name, layout in LAYOUTS.items()}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def limits() -> str:
    """What each layout refuses, in its own words."""
    rows = []
    for mark, what, _ in LIMITS:
        said: dict[str, list[str]] = {}
        for name, reasons in REASONS.items():
            if mark in reasons and not _is_said_by_another(mark, reasons):
                said.setdefault(reasons[mark], []).append(f"`{name}`")
        rows += [[mark, what, ", ".join(names), reason] for reason, names in said.items()]
    return _table(["letter", "a layer with", "is refused by", "which says"], rows)


def pairs() -> str:
    """What a conversion from each layout (a row) to each other (a column) does to the weight, and what it refuses."""
    rows = []
    for source in LAYOUTS:
        row = [f"**{source}**"]
        for target in LAYOUTS:
            is_kept = LAYOUTS[source].weight == LAYOUTS[target].weight
            new = {mark: reason for mark, reason in REASONS[target].items() if mark not in REASONS[source]}
            marks = "".join(mark for mark in new if not _is_said_by_another(mark, new))
            text = ("=" if is_kept else "✓") + (f"<sup>{marks}</sup>" if marks else "")
            row.append("" if source == target else text)
        rows.append(row)
    return _table(["from \\ to", *LAYOUTS], rows)


def layouts() -> str:
    """A section for each layout: its source, its tensors, its configuration, its picture."""
    return "\n".join(_section(layout) for layout in LAYOUTS.values())


def _section(layout: Layout) -> str:
    geometry = Geometry(N, K, GROUP)
    specs = layout.side_specs(geometry, torch.float16)
    roles = {name: role for role, name in layout.names.items()}
    weight = str(layout.weight.dtype).removeprefix("torch.")
    rows = [[f"`{layout.names['weight']}`", "the codes", weight, str(layout.weight.shape(N, K))]]
    for name, spec in specs.items():
        rows.append([f"`{name}`", _ROLES[roles[name]], str(spec.dtype).removeprefix("torch."), str(spec.shape)])
    config = QuantizationConfig(
        GROUP, not layout.stores_symmetric_zeros and "zeros" not in layout.names, ("lm_head",), {}
    )
    text = json.dumps({layout.config_keys[0]: layout.write_config(config)}, indent=2)
    doc = " ".join((layout.__doc__ or "").split())
    return (
        f"### {layout.name}\n\n{doc}\n\nDefined by {layout.source}.\n\n"
        f"{_table(['tensor', 'holds', 'dtype', 'shape'], rows)}\n"
        f"{_shown(f'layouts/{layout.name}', f'Which codes the first elements of a {layout.name} weight hold')}\n"
        f"<details markdown>\n<summary>In config.json</summary>\n\n```json\n{text}\n```\n\n</details>\n"
    )


_ROLES = {
    "zeros": "the zeros",
    "scales": "the scales",
    "shape": "N and K",
    "order": "the group of each column",
    "activations": "factors of the activations",
}


def _shown(name: str, alt: str) -> str:
    """A picture, as MkDocs Material and GitHub show it by the scheme that a reader chose."""
    images = (f"![{alt}](assets/{name}-{theme}.svg#gh-{theme}-mode-only)" for theme in pictures.THEMES)
    return f'<div class="scroll" markdown>\n{"".join(images)}\n</div>\n'


def packings() -> str:
    """A section for each packing: its row as text, and its picture."""
    parts = []
    for form in FORMATS:
        n, k = 64 * form.rows, 64 * form.cols
        lines, items = form.payload_shape(n, k)
        across = f"{items // n}N" if form.runs_down else "K" if items == k else f"K/{k // items}"
        down = f"K/{form.cols}" if form.runs_down else "N" if lines == n else f"N/{n // lines}"
        dtype = str(form.dtype).removeprefix("torch.")
        needs = [f"{name} a multiple of {step}" for name, step in (("N", form.rows), ("K", form.cols)) if step > 1]
        call = f"pack(W, AWQPacking.{form.name}{', reorder=True' if form.reorder else ''})"
        parts.append(
            f"### {form.title}\n\n`{call}`: {dtype} ({down}, {across}); {', '.join(needs)}. In files its name ends in "
            f"`.{form.suffix}`.\n\n"
            f"{_shown(f'packings/{form.suffix}', f'Which code lies in which nibble of {form.title}')}"
        )
    return "\n".join(parts)


def peers() -> str:
    """What enable() knows."""
    rows = []
    for package in PEERS:
        exchange = exchange_of(package)
        module = importlib.import_module(PEERS[package])
        rows.append([f"`{package}`", ", ".join(exchange.versions), (module.__doc__ or "").split("\n")[0]])
    return _table(["package", "versions", "what awqpack takes over"], rows)


SECTIONS = {"peers": peers, "limits": limits, "pairs": pairs, "layouts": layouts, "packings": packings}


def outputs() -> Iterator[tuple[Path, str]]:
    """Every file that is drawn or written, and what it should hold."""
    for name, theme in pictures.THEMES.items():
        for form in FORMATS:
            yield ASSETS / "packings" / f"{form.suffix}-{name}.svg", pictures.packing(form, theme)
        for layout in LAYOUTS.values():
            yield ASSETS / "layouts" / f"{layout.name}-{name}.svg", pictures.layout(layout, theme)
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        yield page, MARKED.sub(lambda match: f"{match[1]}\n{SECTIONS[match[2]]()}\n{match[3]}", text)


def stale() -> list[Path]:
    """Files that do not hold what they should, and pictures of what is no more."""
    expected = dict(outputs())
    changed = [path for path, text in expected.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    drawn = itertools.chain.from_iterable((ASSETS / kind).glob("*.svg") for kind in ("packings", "layouts"))
    return changed + [path for path in drawn if path not in expected]


def main() -> int:
    expected, changed = dict(outputs()), stale()
    if "--check" in sys.argv:
        for path in changed:
            print(f"{path.relative_to(DOCS.parent)} is stale: make docs")
        return 1 if changed else 0
    for path in changed:
        if path in expected:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(expected[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
