"""schemathesis over the OpenAPI description: whatever is sent, no 5xx, and answers are as described."""

import subprocess
import sys
from pathlib import Path

import pytest
from served import make_bundle, start

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_no_call_breaks_the_server(tmp_path):
    pytest.importorskip("schemathesis")
    make_bundle(tmp_path)
    server, address = start(tmp_path, tmp_path / "store.sqlite")
    try:
        command = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [command, "run", f"{address}/openapi.json", "--checks", CHECKS, "--max-examples", "30", "--seed", "1"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
    finally:
        server.terminate()
        server.wait(60)
