#!/bin/bash
# The body of every job: slurm/job.sh train CONFIG [key=value ...]   (called by launch/*.sh)
#
# It becomes the supervisor (exec), so that SLURM's signals, which reach the batch process alone
# (--signal=B:USR2@180), reach the one who knows what to do with them. Paths in configs and
# overrides count from the repository's root.
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

set -a
. "$root/slurm/site.env"
set +a

if [ -n "${MODULES:-}" ]; then
    set +u  # module's own scripts use unset variables
    for init in "${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash" /etc/profile.d/modules.sh \
        /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
        [ "$(type -t module)" = function ] && break
        if [ -r "$init" ]; then . "$init"; fi
    done
    if [ "$(type -t module)" != function ]; then
        echo "slurm/job.sh: MODULES is '$MODULES' in slurm/site.env, but there is no command" \
            "'module' on $(hostname); clear MODULES or name its init script in MODULESHOME" >&2
        exit 2
    fi
    for name in $MODULES; do
        if ! module load "$name"; then
            echo "slurm/job.sh: module '$name' of MODULES in slurm/site.env cannot be loaded on" \
                "$(hostname); \`module avail\` lists what there is" >&2
            exit 2
        fi
    done
    set -u
fi

python=${SUPERVISOR_PYTHON:-$root/.venv/bin/python}
[ -n "${SUPERVISOR_PYTHON:-}" ] || [ -x "$python" ] || python=python3
if ! command -v "$python" >/dev/null; then
    echo "slurm/job.sh: no Python at '$python'; run \`make\` in $root," \
        "or set SUPERVISOR_PYTHON in slurm/site.env" >&2
    exit 2
fi
exec "$python" -m launch supervise "$@"
