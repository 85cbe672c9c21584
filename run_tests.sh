#!/usr/bin/env bash
# Installs, then format, lint, types and tests. usage: ./run_tests.sh [--slow] [PYTEST_OPTION...]
# --slow, or CI=true, adds the tests marked slow; CI=true also makes an unforeseen skip a failure.
set -euo pipefail
script=${BASH_SOURCE[0]}
[[ -L $script ]] && script=$(readlink -f -- "$script") # called through a link
here=${script%"${script##*/}"}
cd -- "${here:-.}"
source ./install.sh

selection='not slow and not soak and not trackers'
guard=()
if [[ ${CI-} == true ]]; then
    selection='not soak and not trackers'
    guard=(-p skip_guard)
fi
if [[ ${1-} == --slow ]]; then
    selection='not soak and not trackers'
    shift
fi

step() { # step NAME REMEDY COMMAND...
    local name=$1 remedy=$2
    shift 2
    echo "== $name"
    "$@" || fail 1 "$name failed (see above); $remedy"
}

# shellcheck disable=SC2046 # one word an extra
ensure_installed $(benchmark_extras) search slurm tensorboard export mlperf docs trainers test
step 'format' "run '.venv/bin/ruff format .'" "$VENV_PYTHON" -m ruff format --check .
step 'lint' "'.venv/bin/ruff check --fix .' mends what it can" "$VENV_PYTHON" -m ruff check .
step 'types' "correct the types or their use" "$VENV_PYTHON" -m mypy
step 'layers' "see .importlinter: arrows point down" "${VENV_PYTHON%/*}/lint-imports"
echo "== tests ($selection)"
# A process a core; a worker that is done takes tests of another, so that a file's stay together.
exec "$VENV_PYTHON" -m pytest ${guard[@]+"${guard[@]}"} -m "$selection" --durations=10 \
    --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
