#!/usr/bin/env bash
# tests/fuzz/run.sh [SECONDS]          fuzz the crop decoder: libFuzzer with ASAN and UBSAN (clang)
# tests/fuzz/run.sh replay [FILE ...]  run files, or the whole corpus, once; gcc will do
#
# Corpus and findings (crash-..., timeout-...) lie in build/fuzz, or in $FUZZ_BUILD.
set -euo pipefail
shopt -s nullglob

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
native=$root/pipeline/data/native
build=${FUZZ_BUILD:-$root/build/fuzz}
python=${PYTHON:-$root/.venv/bin/python}
sources=("$root/tests/fuzz/crop_fuzz.c")
for name in crop segments header resize points taps; do sources+=("$native/$name.c"); done
flags=(-g -O1 -std=gnu11 -fno-omit-frame-pointer -fno-sanitize-recover=all "-I$native")

is_current() { # FILE: newer than everything it is made of
    for source in "${sources[@]}" "$native"/*.h; do [[ $1 -nt $source ]] || return 1; done
}

mkdir -p "$build/corpus" "$build/seeds"
"$python" "$root/tests/fuzz/seeds.py" "$build/seeds"

if [[ ${1:-} == replay ]]; then
    shift
    is_current "$build/crop_replay" || ${CC:-cc} "${flags[@]}" -fsanitize=address,undefined \
        "${sources[@]}" "$root/tests/fuzz/replay.c" -ljpeg -lm -o "$build/crop_replay"
    (($#)) || set -- "$build"/seeds/* "$build"/corpus/*
    exec "$build/crop_replay" "$@"
fi

is_current "$build/crop_fuzz" || clang "${flags[@]}" -fsanitize=fuzzer,address,undefined \
    "${sources[@]}" -ljpeg -lm -o "$build/crop_fuzz"
exec "$build/crop_fuzz" -max_total_time="${1:-60}" -max_len=20000 -timeout=20 \
    -rss_limit_mb=2000 -print_final_stats=1 -artifact_prefix="$build/" \
    "$build/corpus" "$build/seeds"
