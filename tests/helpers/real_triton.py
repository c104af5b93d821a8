"""A real tritonserver on loopback: the one of nvidia-pytriton's wheel, by its own Python.

The wheel wants numpy 1, so it is installed in an environment of its own, which SAMFORGE_PYTRITON
names. Its stub (Triton 2.51) was built before the Python backend learned numpy 2, while samforge
needs one function of numpy 2: the server's Python here has the wheel's numpy, and that function.
Everything else is this process's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import samforge

VARIABLE = "SAMFORGE_PYTRITON"
_SECONDS = 120
_LENT = """\
import numpy

_BITS = numpy.array([one.bit_count() for one in range(256)], numpy.uint8)
if not hasattr(numpy, "bitwise_count"):
    numpy.bitwise_count = lambda array: _BITS[array]
"""
_ASK = """\
import json, sys
import numpy as np
import tritonclient
import tritonclient.http as http

question = np.load(sys.argv[3], allow_pickle=True)
inputs = []
for name in question.files:
    array = question[name]
    kind = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "object": "BYTES"}
    inputs.append(http.InferInput(name, list(array.shape), kind[str(array.dtype)]))
    inputs[-1].set_data_from_numpy(array)
client = http.InferenceServerClient(sys.argv[1])
answer = client.infer(sys.argv[2], inputs)
names = [one["name"] for one in answer.get_response()["outputs"]]
found = {name: answer.as_numpy(name).ravel().tolist() for name in names}
found["rle"] = [one.decode() for one in found["rle"]]
print(json.dumps(found))
"""


def packages() -> Path:
    """Site-packages of the environment with nvidia-pytriton; the test is skipped without one."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"no tritonserver: {VARIABLE} names no environment with nvidia-pytriton")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    found = Path(named) / "lib" / version / "site-packages"
    if not (found / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        pytest.skip(f"no tritonserver: {found} has no pytriton")
    return found


@contextmanager
def tritonserver(repository: Path, work: Path) -> Iterator[str]:
    """Address of a server whose models are ready, without the scheme.

    Args:
        repository: Of models.
        work: An empty folder for the server's own.
    """
    own = packages()
    wheel = own / "pytriton" / "tritonserver"
    shutil.copytree(wheel, work / "server", ignore=shutil.ignore_patterns("python_backend_stubs"))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, work / "server" / "backends" / "python" / stub.name)
    python = _environment(own, work / "python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: Sequence[Any] = (
        *(work / "server" / "bin" / "tritonserver", "--model-repository", repository),
        *("--backend-directory", work / "server" / "backends"),
        *("--http-address", "127.0.0.1", "--http-port", port),
        *("--allow-grpc", "false", "--allow-metrics", "false"),
    )
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    environment |= {
        "PATH": f"{python}:{environment['PATH']}",
        "LD_LIBRARY_PATH": str(own / "nvidia_pytriton.libs"),
        "OMP_NUM_THREADS": "1",
    }
    log = work / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=file, stderr=file, env=environment
        )
    try:
        end = time.monotonic() + _SECONDS
        while not _is_ready(port):
            told = log.read_text("utf-8", "replace")[-3000:]
            assert process.poll() is None, told
            assert time.monotonic() < end, told
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def asked(address: str, model: str, arrays: dict[str, Any], work: Path) -> dict[str, Any]:
    """What NVIDIA's own client gets, outputs by name."""
    question = work / "question.npz"
    np.savez(question, allow_pickle=True, **arrays)
    own = packages()
    run = subprocess.run(
        [own.parents[2] / "bin" / "python", "-c", _ASK, address, model, question],
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _environment(own: Path, folder: Path) -> Path:
    """Programs of a Python with our packages and the wheel's numpy."""
    venv.create(folder, symlinks=True)
    (packages_of,) = folder.glob("lib/*/site-packages")
    for name in ("numpy", "numpy.libs"):
        (packages_of / name).symlink_to(own / name)
    ours = (Path(samforge.__file__).parents[1], *(path for path in sys.path if path))
    (packages_of / "ours.pth").write_text(
        "".join(f"{one}\n" for one in ours if "site-packages" in str(one) or one == ours[0])
    )
    (packages_of / "sitecustomize.py").write_text(_LENT)
    return folder / "bin"


def _is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
    return False
