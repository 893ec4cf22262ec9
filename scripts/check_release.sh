#!/usr/bin/env bash
# Build sdist and wheel as they are uploaded, and run the demo from the wheel in a clean environment of each interpreter:
# check_release.sh [PYTHON...]. It goes on after a failure, and ends with what failed.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- python3.10 python3.11 python3.12 python3.13
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH # the package must come from the wheel

"$1" -m venv "$work/build"
"$work/build/bin/pip" install --quiet build twine
rm -rf dist
"$work/build/bin/python" -m build --outdir dist . >/dev/null
"$work/build/bin/twine" check --strict dist/*
wheel=$(echo "$PWD"/dist/*.whl)

failed=()
for python in "$@"; do
    echo "check_release.sh: $python"
    if ! { bash scripts/install.sh "$python" "$work/venv" "$wheel" &&
        (cd "$work" && venv/bin/pivottrace demo --max-steps "${MAX_STEPS:-10}" --output demo); }; then
        failed+=("$python")
    fi
    rm -rf "$work/venv" "$work/demo"
done
[ ${#failed[@]} -eq 0 ] || { echo "check_release.sh: FAILED with ${failed[*]}" >&2; exit 1; }
echo "check_release.sh: $(du -h "$wheel" | cut -f1) wheel, demo run with: $*"
