#!/usr/bin/env bash
# Writes planner/data/flags anew: what the frameworks' own parsers take, for each version that .ci/flags.txt names. A
# version is unpacked into a folder of its own and lies over the environment that .ci/frameworks.sh makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash .ci/frameworks.sh
# DeepSpeed would otherwise build its GPU operators.
export DS_BUILD_OPS=0
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

mkdir -p planner/data/flags
rm -f planner/data/flags/*.json
while read -r framework package others; do
    python=".frameworks/$framework/bin/python"
    name="$framework-${package##*==}"
    table="planner/data/flags/$name.json"
    # shellcheck disable=SC2086 - the others are words
    "$python" -m pip install -q --no-deps --ignore-requires-python --no-build-isolation --target "$folder/$name" \
        "$package" $others
    PYTHONPATH="$folder/$name:$PWD" "$python" -m "tests.frameworks.extract_$framework" > "$table"
    printf '%s\n' "$table"
done < <(grep -v '^#' .ci/flags.txt)
