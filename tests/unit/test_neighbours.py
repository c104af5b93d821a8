"""Living with others: what dependencies do on their own, forks, and what the system says."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from samforge.core.telemetry import import_runtime
from samforge.workflows.interrupts import interrupts_held, termination_interrupts

SOURCE = Path(__file__).resolve().parents[2] / "src"


def run_python(code: str, home: Path, *words: str, **variables: str) -> str:
    """Run code in a process of its own with a home that nobody has used, and no sign of CI."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-2000:]}"
    return run.stdout


MODEL = """
import onnx, sys
from onnx import TensorProto as T, helper as h
nodes = [h.make_node("MatMul", ["x", "x"], ["y"])]
sides = [h.make_tensor_value_info(name, T.FLOAT, [48, 48]) for name in "xy"]
graph = h.make_graph(nodes, "g", sides[:1], sides[1:])
opsets = [h.make_opsetid("", 17)]
onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=9), sys.argv[1])
"""
LOAD = """
import os, sys, time
import numpy as np
from pathlib import Path
from samforge.backends import backend_from_name
from samforge.core.session import PartSpec, TensorSpec
x, y = (TensorSpec(name=n, dtype="float32", shape=(48, 48)) for n in "xy")
spec = PartSpec(name="p", inputs=(x,), outputs=(y,))
inputs = {"x": np.eye(48, dtype=np.float32)}
def load():
    backend = backend_from_name(sys.argv[2])
    session = backend.session_from_artifact(Path(sys.argv[1]), spec, threads=2)
    assert (session.run(inputs)["y"] == inputs["x"]).all()
    return session
session = load()
"""
FORK = """
sys.stdout.flush()
child = os.fork()
if child == 0:
    CHILD
    sys.exit(7)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    found, status = os.waitpid(child, os.WNOHANG)
    if found:
        print("status", os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    print("hangs")
session.run(inputs)
"""
IN_CHILD = {
    "ends": "pass",
    "drops": "del session",
    "closes": "session.close()",
    "runs": (
        "try:\n        session.run(inputs)\n    except Exception as error:\n"
        "        print(type(error).__name__, 'Load the bundle here' in str(error), flush=True)"
    ),
    "loads its own": "own = load(); print('loaded', flush=True)",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "p.onnx"
    run_python(MODEL, folder, str(path))
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_write_nothing_at_home(tmp_path: Path, model: Path, runtime: str) -> None:
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    asked = "os.environ.get('ORT_DISABLE_TELEMETRY'), 'openvino_telemetry' in sys.modules"
    code = f"{LOAD}\nprint({asked})"
    assert run_python(code, tmp_path, str(model), runtime) == "None False\n"
    assert list(tmp_path.rglob("*")) == []


def test_the_command_line_declines_for_what_it_starts(tmp_path: Path) -> None:
    code = (
        "import os\nfrom samforge.apps import cli\nassert cli.main(['--version']) == 0\n"
        "import onnxruntime\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    assert run_python(code, tmp_path).splitlines()[-1] == "1 1"
    assert list(tmp_path.rglob("*")) == []


def test_who_has_decided_otherwise_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom samforge.core.telemetry import decline_for_process, import_runtime\n"
        "decline_for_process()\nprint(os.environ['ORT_DISABLE_TELEMETRY'])\n"
        "class Probe:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'onnxruntime': print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
        "        if name == 'openvino': print('openvino_telemetry' in sys.modules)\n"
        "sys.meta_path.insert(0, Probe())\n"
        "for name in ('onnxruntime', 'openvino'):\n"
        "    sys.modules.pop(name, None)\n"
        "    try: import_runtime(name)\n"
        "    except Exception: pass\n"
    )
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("0")
    out = run_python(code, tmp_path, ORT_DISABLE_TELEMETRY="no")
    assert out == "no\nno\nFalse\n"


def test_a_module_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = object()
    monkeypatch.setitem(sys.modules, "onnxruntime", marker)
    assert import_runtime("onnxruntime") is marker


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("what", IN_CHILD)
def test_a_fork_lets_go(tmp_path: Path, model: Path, runtime: str, what: str) -> None:
    if find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    code = LOAD + FORK.replace("CHILD", IN_CHILD[what])
    out = run_python(code, tmp_path, str(model), runtime).splitlines()
    assert out[-1] == "status 7"
    assert out[:-1] == {"runs": ["ForkedSession True"], "loads its own": ["loaded"]}.get(what, [])


def test_a_fork_ends_a_stream(tmp_path: Path) -> None:
    code = """
import os, sys, time
from samforge.runtime.prefetch import Prefetcher
stream = Prefetcher(iter(range(10**9)), ahead=2, name="read")
next(stream)
stream._line._changed.acquire()  # as a thread that the child does not have may hold it
child = os.fork()
if child == 0:
    try:
        next(stream)
    except Exception as error:
        print(type(error).__name__, flush=True)
    stream.close()
    sys.exit(7)
stream._line._changed.release()
print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
next(stream)
"""
    assert run_python(code, tmp_path) == "ForkedSession\nstatus 7\n"


def test_a_fork_ends_decoding_ahead(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from samforge.runtime.batches import decoded_ahead
held = threading.Event()
def read(name):
    held.wait(5 if name == "b" else 0)
    return name
line = decoded_ahead(iter("abcdefgh"), read)
print(next(line)[0](), flush=True)
child = os.fork()  # in it nobody decodes b
if child == 0:
    try:
        print([one() for one, _ in line])
    except Exception as error:
        print(type(error).__name__, flush=True)
    line.close()
    sys.exit(7)
print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
held.set()
print("".join(one() for one, _ in line))
"""
    assert run_python(code, tmp_path) == "a\nForkedSession\nstatus 7\nbcdefgh\n"


def test_sigterm_is_an_interrupt() -> None:
    import signal

    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done = []
    with pytest.raises(KeyboardInterrupt), termination_interrupts():  # noqa: PT012
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the frame")
        done.append("not reached")
    assert done == ["the frame"]


def test_who_handles_sigterm_keeps_it() -> None:
    import signal

    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with termination_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
