"""Figures and plots in the pages are those of the newest results."""

import importlib
import re
from pathlib import Path

import pytest

from awqpack.peers import PEERS, exchange_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


def test_pages_show_the_newest_results(benchmarks):
    figures = benchmarks("figures")
    stale = [page.name for page in figures.pages() if figures.filled_in(page.read_text()) != page.read_text()]
    assert not stale, "run python -m benchmarks figures"


def test_plots_show_the_newest_results(benchmarks):
    plot = benchmarks("plot")
    drawn = {path: plot.drawn_from(path.stem.rpartition("-")[0]) for path in sorted(plot.PLOTS.glob("*.svg"))}
    assert {path.name for path, source in drawn.items() if plot.source_in(path) != source} == set(), (
        "run python -m benchmarks plot"
    )
    assert {path.stem for path in drawn} == {
        f"{path.stem.rpartition('-')[0]}-{theme}" for path in drawn for theme in plot.THEMES
    }


def test_every_plot_that_a_page_shows_is_there(benchmarks):
    plots = benchmarks("plot").PLOTS
    named = {
        name
        for page in benchmarks("figures").pages()
        for name in re.findall(r"assets/plots/([\w-]+)", page.read_text())
    }
    assert {name for name in named if not (plots / f"{name}.svg").exists()} == set()


def test_a_figure_that_is_out_of_date_is_filled_in(benchmarks):
    figures = benchmarks("figures")
    page = "above\n<!-- figures:gpu -->\nold\n<!-- /figures -->\nbelow\n"
    now = figures.filled_in(page)
    assert now == page.replace("old\n", figures.gpu() + "\n")
    assert figures.filled_in(now) == now
    with pytest.raises(SystemExit, match="figures:cats is none of peers"):
        figures.filled_in(page.replace("gpu", "cats"))


def test_the_newest_file_that_has_the_rows_is_read(benchmarks, tmp_path, monkeypatch):
    results = benchmarks("results")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name, text in {
        "gpu-a-2026-01-02.csv": "table,layout,ms\nkernels,V1,2\n",
        "gpu-b-2026-01-01.csv": "table,packing,ms\nkernels,V1,1\npeers,V2,5\n",
        "gpu-c-2026-01-03.csv": "table,packing,ms\nmodels,V1,3\n",
        "gpux-c-2026-01-04.csv": "table,packing,ms\nkernels,V1,4\n",
    }.items():
        (tmp_path / name).write_text(text)
    kernels = results.newest("gpu", lambda row: row["table"] == "kernels")
    assert (kernels.name, kernels) == ("gpu-a-2026-01-02.csv", [{"table": "kernels", "packing": "V1", "ms": "2"}])
    assert results.newest("gpu", lambda row: row["packing"] == "V2").name == "gpu-b-2026-01-01.csv"
    assert not results.newest("gpu", lambda row: row["table"] == "none")


def test_a_peer_that_cannot_run_is_listed_with_the_reason(benchmarks, monkeypatch):
    beside, pairs = benchmarks("beside"), benchmarks("pairs")

    def failing(layer):
        return {"pack": pairs.Pair(lambda: 1 / 0, layer.codes.clone)}

    monkeypatch.setattr(beside, "PEERS", {"torch ops": (None, failing), "cats": ("1.0", failing)})
    rows = [row for _, step in beside.plan("cpu", 128, 1) for row in step()]
    assert [(row.table, row.baseline, row.what["reason"]) for row in rows] == [
        ("left out", "torch ops", "pack: ZeroDivisionError: division by zero"),
        ("left out", "cats", "not installed (make bench installs 1.0)"),
    ]
    assert {row.columns()["ms"] for row in rows} == {""}


def test_peers_of_each_device_are_shown_apart(benchmarks, tmp_path, monkeypatch):
    figures = benchmarks("figures")
    monkeypatch.setattr(benchmarks("results"), "FOLDER", tmp_path)
    (tmp_path / "gpu-h100-2026-01-01.csv").write_text(
        "gpu,cpu,cpus,torch,date,table,op,size,dtype,version,device,reason,ms,baseline,baseline_ms,ratio\n"
        "H100,Xeon,16,2.11,2026-01-01,beside,pack,8x8,float16,2.11,cuda,,1,torch ops,3,3\n"
        "H100,Xeon,16,2.11,2026-01-01,left out,,,,0.2,cuda,not installed,,autoawq,,\n"
    )
    shown = figures.filled_in("<!-- figures:gpu-peers -->\n<!-- /figures -->")
    assert "| torch ops 2.11 | 3 / 1 (**3.0x**) |\n\nLeft out: autoawq (not installed).\n" in shown
    unmeasured = "<!-- figures:peers -->\nold\n<!-- /figures -->"
    assert figures.filled_in(unmeasured) == unmeasured


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.0123, "12.3 us"),
        (1.2, "1.2 ms"),
        (123.4, "123 ms"),
        (1234.0, "1.23 s"),
        (24535.5, "24.5 s"),
        (0.9997, "1 ms"),
    ],
)
def test_times_in_words(benchmarks, milliseconds, text):
    assert benchmarks("figures").short(milliseconds) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.84, "0.8"), (9.94, "9.9"), (9.96, "10"), (123.4, "120"), (12345, "12,000")]
)
def test_ratios_in_words(benchmarks, ratio, text):
    assert benchmarks("figures").times(ratio) == text


def test_what_is_installed_is_what_is_compared(benchmarks):
    """One version of each package: where it is installed, where it is timed, and where awqpack goes under it."""
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "Makefile").read_text()
    installed = {(name, version) for name, version in re.findall(r"([a-z][\w.-]*)==([\w.]+)", text)}
    timed = {(name, version) for name, (version, _) in benchmarks("beside").PEERS.items() if version}
    known = {(name, version) for name in PEERS for version in exchange_of(name).versions}
    assert known <= timed <= installed
