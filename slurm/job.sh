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

python=${SUPERVISOR_PYTHON:-$root/.venv/bin/python}
[ -n "${SUPERVISOR_PYTHON:-}" ] || [ -x "$python" ] || python=python3
if ! command -v "$python" >/dev/null; then
    echo "slurm/job.sh: no Python at '$python'; run \`make\` in $root," \
        "or set SUPERVISOR_PYTHON in slurm/site.env" >&2
    exit 2
fi
exec "$python" -m launch supervise "$@"
