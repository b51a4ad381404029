#!/usr/bin/env bash
# Runs each fuzz target for a while, from the corpus in fuzz/corpus.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/fuzz.sh [--seconds N] [--keep] [TARGET...]

Feeds bytes of strangers to the parsers that meet them, one target after the other, and stops at the first
that breaks a promise. Works with the stable compiler; what it builds goes to target/fuzz.

    --seconds N  time for each target (default 60)
    --keep       afterwards put the smallest inputs that reach new code into fuzz/corpus
    TARGET       answer, catalog, frames, gguf, kv_file, manifest, metadata, pieces,
                 request, schema, stick, template, tools, topic (default: all)

What breaks something is written to target/fuzz/artifacts/TARGET. To see it again:
    scripts/fuzz.sh TARGET target/fuzz/artifacts/TARGET/crash-…
Its place is then fuzz/corpus/TARGET, where the tests of the repository run it from now on.
END
}

seconds=60 keep='' targets=() inputs=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --seconds) seconds=${2:?--seconds needs a number} && shift ;;
        --keep) keep=1 ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        */*) inputs+=("$(realpath "$1")") ;;
        *) targets+=("$1") ;;
    esac
    shift
done
all=(answer catalog frames gguf kv_file manifest metadata pieces request schema stick template tools topic)
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")
cd "$repo_dir"
need_rust

# What `cargo fuzz` hands to the compiler, less the address sanitizer, which needs a nightly one: the code
# under test is safe Rust. The triple keeps the flags away from build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
work=$repo_dir/target/fuzz
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"

# built TARGET...: compiles them.
built() {
    local bins=()
    for target in "$@"; do bins+=(--bin "$target"); done
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$work" "${bins[@]}" >&2
}

# run TARGET [libFuzzer's arguments...]
run() {
    local target=$1
    shift
    "$work/$host/release/$target" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$work/artifacts/$target/" "$@"
}

step "building: ${targets[*]}"
built "${targets[@]}" || die "the fuzz targets do not build"
for target in "${targets[@]}"; do
    found=$work/corpus/$target seeds=fuzz/corpus/$target
    mkdir -p "$found" "$work/artifacts/$target" "$seeds"
    if [ ${#inputs[@]} -gt 0 ]; then
        run "$target" "${inputs[@]}" || die "$target breaks on it"
        continue
    fi
    step "$target, for $seconds s from $(find "$seeds" -type f | wc -l) inputs"
    log=$work/$target.log
    extra=()
    # A template that is stopped for its memory leaves it behind (engine/src/budget.rs): such a process ends at
    # its limit, and the next one goes on.
    [ "$target" != template ] || extra=(-fork=1 -ignore_ooms=1 -rss_limit_mb=2048)
    if ! run "$target" -max_total_time="$seconds" -max_len=65536 "${extra[@]}" "$found" "$seeds" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        ! grep -q 'run interrupted' "$log" || die "$target was interrupted"
        die "$target found something, or did not start: see $log and $work/artifacts/$target"
    fi
    grep -E '^stat::number_of_executed_units|^stat::peak_rss_mb' "$log" >&2 || true
    if [ -n "$keep" ]; then
        # Small inputs first; those that reach nothing new are left out.
        run "$target" -merge=1 -max_len=1024 "$seeds" "$found" >>"$log" 2>&1 || die "merging failed: $log"
        say "    fuzz/corpus/$target: $(find "$seeds" -type f | wc -l) inputs, $(du -sh "$seeds" | cut -f1)"
    fi
done
