"""The short form of fuzz_sequences.py; `make fuzz-writes` runs the long one."""

import pytest
from fuzz_sequences import run


@pytest.mark.parametrize("seed", range(4))
def test_sequences_of_ops_beside_an_aliasing_twin(seed):
    seen = run(600, seed)
    assert {"in place", "foreach", "vmap", "threads", "deepcopy", "pickle", "read", "members"} <= seen.keys()
