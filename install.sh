# shellcheck shell=bash
# Makes .venv and installs the package into it; sourced from the repository's root by
# run_dawnbench.sh and run_tests.sh, which then call `ensure_installed EXTRA...`.

VENV_PYTHON=.venv/bin/python
# One line: the fingerprint of what was installed, and the extras. Written last, so that an
# install which was cut short is done again.
STAMP=.venv/installed

fail() { # fail EXIT_CODE MESSAGE
    echo "${0##*/}: $2" >&2
    exit "$1"
}

is_supported() { # is_supported PYTHON: it runs, is 3.11 or 3.12, and can make environments
    "$1" -I -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
        >/dev/null 2>&1
}

find_python() {
    local name
    for name in python3.11 python3.12 python3 python; do
        # Run, not only looked up: a version manager's shim may stand for no Python at all.
        if is_supported "$name"; then
            echo "$name"
            return
        fi
    done
    fail 2 "no Python 3.11 or 3.12 with its venv module on PATH; install one and run this again."
}

# The folder is part of it because an editable install points there: a moved copy installs anew.
fingerprint() {
    "$VENV_PYTHON" -I -S -c '
import hashlib, os, sys
parts = [sys.version, os.getcwd(), *(open(name, encoding="utf-8").read() for name in sys.argv[1:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())' \
        setup.cfg pyproject.toml constraints.txt
}

# Comma-separated extras of the last complete install of just these files, or a failure.
installed_extras() {
    local stamped extras
    [[ -f $STAMP ]] || return 1
    read -r stamped extras <"$STAMP" || return 1
    [[ $stamped == "$(fingerprint 2>/dev/null)" ]] || return 1
    echo "$extras"
}

is_installed() { # is_installed EXTRA...
    local have extra
    have=$(installed_extras) || return 1
    for extra in "$@"; do
        [[ ,$have, == *",$extra,"* ]] || return 1
    done
}

ensure_installed() { # ensure_installed EXTRA...
    local extra extras python work
    unset PYTHONHOME # it would bend .venv's Python to another installation
    is_installed "$@" && return

    # Extras that are there already stay in, so that the two scripts do not undo each other.
    extras=$(installed_extras) || extras=""
    for extra in "$@"; do
        [[ ,$extras, == *",$extra,"* ]] || extras+=${extras:+,}$extra
    done
    if ! is_supported "$VENV_PYTHON" || ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit
        echo "Making .venv with $("$python" --version) ..."
        "$python" -m venv --clear .venv || fail 1 "could not make .venv with $python (see above);\
 check the free disk space, remove .venv, and run this again."
    fi
    work="once, some minutes, 5 GB to download"
    [[ -f $STAMP ]] && work="what is missing or has changed"
    echo "Installing swap_fast[$extras] into .venv: $work ..."
    rm -f "$STAMP"
    "$VENV_PYTHON" -m pip install --disable-pip-version-check --no-input \
        -c constraints.txt -e ".[$extras]" || fail 1 "the install stopped (see above);\
 check the network and the free disk space (13 GB), and run this again: it starts over."
    echo "$(fingerprint) $extras" >"$STAMP"
}

# What every run of the benchmark uses; DALI's wheels for CUDA 12 are taken on Linux x86-64 only.
benchmark_extras() {
    echo telemetry plots
    if [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]]; then echo dali; fi
}
