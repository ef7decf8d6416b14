#!/usr/bin/env bash
# Installs the frameworks' own Python into .frameworks, an environment each, for the tests marked `frameworks`. Does
# nothing where what the requirement files ask for is already there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# install NAME FILE [ARGUMENTS OF PIP AND LAST FILE]: the packages of FILE, then those of the last file.
install() {
    local folder=".frameworks/$1" first="$2" last="${*: -1}"
    local wanted
    wanted="$(cat "$first" "$last")"
    if [[ -f "$folder/installed.txt" && "$(<"$folder/installed.txt")" == "$wanted" ]]; then
        return
    fi
    rm -rf "$folder"
    mkdir -p .frameworks
    "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/python" -m pip install -q -r "$first"
    "$folder/bin/python" -m pip install -q "${@:3:$#-3}" -r "$last"
    printf '%s' "$wanted" > "$folder/installed.txt"
}

install megatron .ci/frameworks/megatron.txt --no-deps --ignore-requires-python .ci/frameworks/megatron-core.txt
# It would otherwise build its GPU operators while it is installed.
export DS_BUILD_OPS=0
install deepspeed .ci/frameworks/deepspeed-torch.txt .ci/frameworks/deepspeed.txt
install vllm .ci/frameworks/vllm-torch.txt -c .ci/frameworks/vllm-constraints.txt .ci/frameworks/vllm.txt
# vLLM asks for them, but needs none; they load libraries of the system that need not be there.
.frameworks/vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec 2> /dev/null
install sglang .ci/frameworks/sglang.txt --no-deps .ci/frameworks/sglang-package.txt
# A killed run leaves its lock beside the operator that it was building; nothing builds now.
find .frameworks -path '*/extensions/*' -name lock -delete
