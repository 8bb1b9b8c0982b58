"""A config.json of any bytes is read, or refused by a CheckpointError; what is read can be written, and reads alike."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from checkpoints import LAYOUT_NAMES, quantization_config

from awqpack.checkpoint import CheckpointError
from awqpack.checkpoint.config_files import ConfigFiles
from awqpack.layouts import LAYOUTS, Layout, LayoutError

FILES = ["config.json", "quant_config.json", "quantize_config.json", "hf_quant_config.json"]


def seeds():
    """The first byte says which of FILES the rest is."""
    found = []
    for name in LAYOUT_NAMES:
        config = quantization_config(name)
        found.append(b"\0" + json.dumps({"hidden_size": 1, "quantization_config": config}).encode())
        found += [bytes([number]) + json.dumps(config).encode() for number in (1, 2, 3)]
    return found


def check(data):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        (Path(folder) / FILES[data[0] % 4 if data else 0]).write_bytes(data[1:])
        try:
            configs = ConfigFiles(Path(folder))
            found = configs.read(None)
            for layout in LAYOUTS.values():
                read_as(configs, layout)
        except CheckpointError as error:
            assert str(error), "an error without words"
            return
    if found is not None:
        check_written(*found[:2])


def read_as(configs, layout):
    try:
        configs.read(layout)
    except CheckpointError as error:
        assert str(error), "an error without words"


def check_written(layout, config):
    if not isinstance(layout, Layout):  # it is only read
        return
    try:
        written = layout.write_config(config)
    except LayoutError as error:
        assert str(error), "an error without words"
        return
    assert json.loads(json.dumps(written)) == written
    again = layout.read_config(written)
    assert (again.group_size, again.is_symmetric) == (config.group_size, config.is_symmetric), (config, again)
