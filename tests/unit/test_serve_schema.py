"""schemathesis over the whole OpenAPI document: whatever fits it, or does not, is answered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from served import served

from samforge.serving import Limits

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
# A request that asks to be answered within no time at all is told that it cannot be.
CONFIG = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]\n'


@pytest.fixture(scope="module")
def client(proven_bundle: Callable[..., Path]) -> Iterator[httpx.Client]:
    limits = Limits(request_bytes=100_000, pixels=1_000_000, upload_seconds=5)
    with served(proven_bundle("schema"), limits=limits) as (client, _):
        yield client


@pytest.mark.filterwarnings("ignore::samforge.core.errors.PromptWarning")
@pytest.mark.slow
@pytest.mark.parametrize("examples", [8, 150], ids=["quick", "long"])
def test_the_document_is_what_the_server_does(
    client: httpx.Client, examples: int, tmp_path: Path
) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    run = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                "--config-file",
                str(config),
                "run",
                f"{client.base_url}/openapi.json",
            ),
            *(
                "--checks",
                CHECKS,
                "--max-examples",
                str(examples),
                "--phases",
                "examples,coverage,fuzzing",
            ),
            *("--mode", "all", "--seed", "1", "--request-timeout", "20", "--no-color"),
            *("--suppress-health-check", "all", "--generation-database", "none"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-16000:] + run.stderr[-2000:]
    assert "/v1/segment" in client.get("/openapi.json").text
    assert client.get("/health/live").status_code == 200
