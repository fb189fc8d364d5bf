from __future__ import annotations

import json
import os
import subprocess
import sys


def test_this_installation_is_healthy() -> None:
    variables = ("RANK_TABLE_FILE", "RANK_ID", "MS_ROLE")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    done = subprocess.run(
        [sys.executable, "-m", "glm3sdk", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert [each for each in checks.values() if each["status"] == "fail"] == []
    assert done.returncode == 0
    assert {checks[name]["status"] for name in ("device", "tokenizer", "decode")} == {"ok"}
    assert "4 tokens" in checks["decode"]["detail"]
