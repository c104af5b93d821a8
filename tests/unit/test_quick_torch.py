"""What the tests spare torch changes nothing in what it makes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PLAIN = """
import sys
from pathlib import Path
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint, part_inputs
from samforge.models.part import example_inputs
from samforge.transform.export import TRACED_SIZES, exported_from_part, save_exported
from samforge.transform.export import exported_from_file
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
import torch, torch.fx

torch.set_num_threads(1)
assert not torch.fx.config.do_not_emit_stack_traces
checkpoint = checkpoint_from_name(sys.argv[1])
part = part_from_checkpoint(checkpoint, "text")
inputs = example_inputs(
    part_inputs(checkpoint.config, "text", "meta"),
    TRACED_SIZES,
    vocabulary=checkpoint.config.text_config.vocab_size,
    eos_id=checkpoint.eos_id,
    seed=0,
)
out = Path(sys.argv[2])
save_exported(exported_from_part(part, inputs), out)
save_onnx(onnx_from_exported(exported_from_file(out), part.spec), out.with_suffix(".onnx"))
"""


def test_files_are_those_of_torch_as_it_is(
    small_folder: Path,
    exported_file: Callable[[str], Path],
    onnx_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "text.pt2"
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(small_folder), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_bytes() == exported_file("text").read_bytes()
    assert out.with_suffix(".onnx").read_bytes() == onnx_file("text").read_bytes()
