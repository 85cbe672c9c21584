#!/usr/bin/env bash
# From nothing to a report: installs, runs a recipe, and writes and prints the tables.
set -euo pipefail
script=${BASH_SOURCE[0]}
[[ -L $script ]] && script=$(readlink -f -- "$script") # called through a link
here=${script%"${script##*/}"}
cd -- "${here:-.}"
source ./install.sh

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    echo 'usage: ./run_dawnbench.sh [RECIPE] [OPTION...]'
    echo
    echo 'Installs into .venv (the first call only), runs RECIPE, then writes and prints the report.'
    echo 'Without RECIPE: cifar10_dawnbench on CUDA devices, cifar10_speed_half where there are none.'
    echo 'OPTIONs go to `python -m bench run`; --quick is a first look, kept in results/quick.'
    if ! is_installed; then
        echo 'Nothing is installed yet: after a first call this also lists the recipes and options.'
        exit 0
    fi
    echo
    exec "$VENV_PYTHON" -m bench run --help
fi

# shellcheck disable=SC2046 # one word an extra
ensure_installed $(benchmark_extras)

if [[ ${1--} == -* ]]; then
    set -- auto "$@"
fi

results=results
if [[ " $* " == *" --quick "* || $1 == cifar10_quick ]]; then
    # A folder of its own, so that a first look shows this run and no other; an --out after it wins.
    set -- "$1" --out results/quick "${@:2}"
fi
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --out) j=$((i + 1)) && results=${!j-} ;; # `run` says that it needs a folder
        --out=*) results=${!i#--out=} ;;
    esac
done
"$VENV_PYTHON" -m bench run "$@"
"$VENV_PYTHON" -m bench report --results "$results"
