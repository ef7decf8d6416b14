"""What bash starts of the files for vLLM, from a stand-in for the program."""

import subprocess
from pathlib import Path

from planner.emit.vllm import emit_vllm, script_name
from planner.serving_plans.layout import Pool, ServingLayout


def started(folder: Path, layout: ServingLayout, pool: Pool | None = None, /, **environment: str) -> list[str]:
    """Return the words that vLLM gets on a node of a pool, the first one unless it is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in emit_vllm(layout).items():
        (folder / name).write_text(text, encoding="utf-8")
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in {
        "vllm": 'printf "%s\\n" "$@" "devices=${CUDA_VISIBLE_DEVICES:-all}"',
        "ray": 'case "$*" in list*) yes node_id | head -n 64;; *--block*) echo joined;; esac',
    }.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    result = subprocess.run(
        ["bash", script_name(pool or layout.pools[0])],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
