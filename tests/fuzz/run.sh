#!/usr/bin/env bash
# tests/fuzz/run.sh crop|ops [SECONDS]          fuzz the decoder or the operations: libFuzzer with
#                                               ASAN and UBSAN (clang)
# tests/fuzz/run.sh crop|ops replay [FILE ...]  run files, or the whole corpus, once; gcc will do
#
# Corpus and findings (crash-..., timeout-...) lie in build/fuzz/TARGET, or in $FUZZ_BUILD/TARGET.
set -euo pipefail
shopt -s nullglob

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
native=$root/pipeline/data/native
target=${1:-crop}
build=${FUZZ_BUILD:-$root/build/fuzz}/$target
python=${PYTHON:-$root/.venv/bin/python}
flags=(-g -O1 -std=gnu11 -ffp-contract=off -fno-omit-frame-pointer -fno-sanitize-recover=all
    "-I$native")
case $target in
    crop) sources=("$native"/{crop,resize,points,taps}.c "$native"/jpeg/*.c) libraries=(-ljpeg -lm) ;;
    ops) sources=("$native"/{ops,values,blend,warp,warp_exact}.c) libraries=(-lm) ;;
    *) echo "run.sh: target $target: expected crop or ops" >&2; exit 2 ;;
esac
sources+=("$root/tests/fuzz/${target}_fuzz.c")

is_current() { # FILE: newer than everything it is made of
    for source in "${sources[@]}" "$native"/*.h "$native"/*/*.h; do
        [[ $1 -nt $source ]] || return 1
    done
}

mkdir -p "$build/corpus" "$build/seeds"
[[ $target == ops ]] || "$python" "$root/tests/fuzz/seeds.py" "$build/seeds"

if [[ ${2:-} == replay ]]; then
    shift 2
    is_current "$build/replay" || ${CC:-cc} "${flags[@]}" -fsanitize=address,undefined \
        "${sources[@]}" "$root/tests/fuzz/replay.c" "${libraries[@]}" -o "$build/replay"
    (($#)) || set -- "$build"/seeds/* "$build"/corpus/*
    exec "$build/replay" "$@"
fi

is_current "$build/fuzz" || clang "${flags[@]}" -fsanitize=fuzzer,address,undefined \
    "${sources[@]}" "${libraries[@]}" -o "$build/fuzz"
exec "$build/fuzz" -max_total_time="${2:-60}" -max_len=20000 -timeout=20 \
    -rss_limit_mb=2000 -print_final_stats=1 -artifact_prefix="$build/" \
    "$build/corpus" "$build/seeds"
