#!/usr/bin/env bash
# Installs Megatron-LM's own Python into .frameworks/megatron, for the tests marked `frameworks`. Does nothing when
# what the requirement files ask for is already there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=.frameworks/megatron
wanted="$(cat .ci/frameworks/megatron.txt .ci/frameworks/megatron-core.txt)"
if [[ -f "$folder/installed.txt" && "$(<"$folder/installed.txt")" == "$wanted" ]]; then
    exit 0
fi

rm -rf "$folder"
mkdir -p .frameworks
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install -q -r .ci/frameworks/megatron.txt
"$folder/bin/python" -m pip install -q --no-deps --ignore-requires-python -r .ci/frameworks/megatron-core.txt
printf '%s' "$wanted" > "$folder/installed.txt"
