"""The programs of examples/: each checks its own result, and says what it did."""

import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch.distributed as dist

EXAMPLES = Path(__file__).parent.parent / "examples"

# program: the packages it needs, and what it says at the end
SAYS = {
    "quantize_transformers": (["transformers", "compressed_tensors"], "logits differ from the original's by"),
    "w4a16_linear": (["accelerate"], "the same result on"),
    "convert_checkpoint": ([], "and as GPTQ stores it"),
}


def test_all_programs_are_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "tensor_parallel"}
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"`{path.name}`" in table for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SAYS)
def test_program(name, capsys, monkeypatch, tmp_path):
    packages, says = SAYS[name]
    for package in packages:
        pytest.importorskip(package, reason=f"needs the package {package}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert says in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
def test_tensor_parallel():
    """Two processes as torchrun starts them, around a store as torchrun's."""
    script = (EXAMPLES / "tensor_parallel.py").read_text()
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with ThreadPoolExecutor(2) as pool:
        processes = list(
            pool.map(
                lambda rank: forked.run(
                    script, is_taken_apart=True, **shared, WORLD_SIZE="2", OMP_NUM_THREADS="1", RANK=str(rank)
                ),
                range(2),
            )
        )
    for process in processes:
        assert process.returncode == 0, process.stderr
    said = [line for line in processes[0].stdout.splitlines() if not line.startswith("[Gloo]")]  # torch 2.10's own
    assert said == ["2 processes, each with 32768 of 65536 bytes"]
