#!/usr/bin/env bash
# Builds Orinoco for aarch64 on another machine, for the processor, and tries it under qemu.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/cross-arm64.sh [build] [check] [ask] [test] [deb]

As root on an x86-64 Debian or Ubuntu. Makes a Debian in target/cross-arm64/root with a Rust that knows aarch64
(trixie-backports) and the cross compiler and glibc 2.31 of bullseye, so that what it builds runs wherever glibc is
2.31 or newer: JetPack 6 has 2.35. Nothing of this machine but cargo's registry is used. 6 GiB of disk.

    build    daemon and worker, into target/cross-arm64/aarch64-unknown-linux-gnu/release
    check    they ask for no newer glibc or libstdc++ than JetPack 6 has
    ask      the daemon under qemu-user answers a prompt with SmolLM2, through Mosquitto
    test     the unit tests of both packages, under qemu-user
    deb      packages for arm64, without CUDA

Without a word: build, check, ask, test. Ends with 77 where the root's packages are not to be had.
END
}

steps=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        build | check | ask | test | deb) steps+=("$1") ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(build check ask test)
[ "$(uname -m)" = x86_64 ] || die "this is no x86-64 machine; scripts/deb.sh builds where it runs"
[ "$(id -u)" = 0 ] || die "a root for the build is made and entered with chroot; run this as root"

target=aarch64-unknown-linux-gnu
work=$repo_dir/target/cross-arm64
root=$work/root
programs=$work/$target/release
# Of Ubuntu 22.04.
glibc_max=2.35 glibcxx_max=3.4.30

want mmdebstrap "makes the root that the build runs in" have mmdebstrap
want qemu-user-static "runs the programs" have qemu-aarch64-static
want binutils "reads what the programs need" have objdump
want mosquitto "the broker; started on a free port" have mosquitto
export PATH="$PATH:/usr/sbin"
install_wanted

make_root() {
    [ ! -e "$root.done" ] || return 0
    step "making a root for the build"
    rm -rf "$root" && mkdir -p "$work"
    # The standard library for arm64 is unpacked, not installed: it would bring arm64's glibc along.
    # The hooks' own arguments.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=apt --architectures=amd64,arm64 --aptopt='APT::Install-Recommends "false"' \
        --include=ca-certificates,rustc,cargo,gcc,g++,cmake,make,git,libclang-dev,g++-10-aarch64-linux-gnu,libc6-dev-arm64-cross \
        --setup-hook='mkdir -p "$1/etc/apt/preferences.d" && cat >"$1/etc/apt/preferences.d/cross" <<END
Package: *-arm64-cross gcc-10-cross-base *-10-aarch64-linux-gnu *-10-aarch64-linux-gnu-base
Pin: release n=bullseye
Pin-Priority: 1001

Package: rustc cargo libstd-rust*
Pin: release n=trixie-backports
Pin-Priority: 1001
END' \
        --customize-hook='cd "$1/tmp" && chroot "$1" sh -ec "cd /tmp && apt-get download -q libstd-rust-dev:arm64/trixie-backports
            dpkg -x libstd-rust-dev_*.deb / && rm libstd-rust-dev_*.deb"' \
        trixie "$root" \
        "deb http://deb.debian.org/debian trixie main" \
        "deb http://deb.debian.org/debian trixie-backports main" \
        "deb http://deb.debian.org/debian bullseye main" >&2 || return 1
    touch "$root.done"
}

# in_root COMMAND...: with the sources at /src, the registry at /cargo and results in /target.
in_root() {
    mkdir -p "$root/src" "$root/cargo" "$root/target" "${CARGO_HOME:-$HOME/.cargo}"
    cat >"$root/in" <<'END'
set -e
mount --bind "$1" "$2/src"
mount --bind "$3" "$2/target"
mount --bind "$4" "$2/cargo"
mount -t proc proc "$2/proc"
cd /
shift 4
exec chroot "$ROOT" env -i PATH=/usr/bin:/bin CARGO_HOME=/cargo CARGO_TARGET_DIR=/target RUSTFLAGS= \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc-10 \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc-10 CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++-10 \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu=-I/usr/aarch64-linux-gnu/include \
    sh -c 'cd /src && exec "$@"' sh "$@"
END
    ROOT=$root unshare --mount --propagation private sh "$root/in" "$repo_dir" "$root" "$work" "${CARGO_HOME:-$HOME/.cargo}" "$@" >&2
}

# With the instructions of Armv8.2, like Orin's Cortex-A78AE, and no newer ones.
emulator() { printf '%s\n' qemu-aarch64-static -cpu cortex-a76 -L "$root/usr/aarch64-linux-gnu"; }

build() {
    local from=$SECONDS
    in_root cargo build --release --locked --target "$target" -p orinoco -p orinoco-engine || die "the build failed"
    say "built in $((SECONDS - from)) s: $(cd "$programs" && du -h orinoco orinoco-engine | tr '\n\t' '; ')"
}

# newest PROGRAM PREFIX: the newest version of these symbols that it asks for.
newest() { objdump -T "$1" | sed -n "s/.*(\?$2_\([0-9.]*\))\?.*/\1/p" | sort -V | tail -n 1; }

check() {
    local program found
    for program in "$programs/orinoco" "$programs/orinoco-engine"; do
        # objdump of another machine calls it unknown.
        readelf -h "$program" | grep -q 'Machine: *AArch64' || die "$program is not for aarch64"
        found=$(newest "$program" GLIBC)
        [ -n "$found" ] || die "$program: objdump shows no version of glibc"
        newer_or_same "$glibc_max" "$found" || die "$program wants glibc $found; JetPack 6 has $glibc_max"
        say "$(basename "$program"): glibc $found, at most $glibc_max"
        found=$(newest "$program" GLIBCXX)
        [ -z "$found" ] || newer_or_same "$glibcxx_max" "$found" || die "$program wants GLIBCXX $found; JetPack 6 has $glibcxx_max"
    done
}

# The worker is a child of the daemon, and the kernel starts no aarch64 program by itself: a script does.
ask() {
    local model=$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf port state answer from=$SECONDS
    "$repo_dir/scripts/fetch-models.sh" smollm2
    state=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "kill \$(jobs -p) 2>/dev/null; wait; rm -rf '$state'" EXIT
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    printf 'listener %s 127.0.0.1\nallow_anonymous true\nuser root\n' "$port" >"$state/mosquitto.conf"
    mosquitto -c "$state/mosquitto.conf" >"$state/mosquitto.log" 2>&1 &
    mapfile -t qemu < <(emulator)
    printf '#!/bin/sh\nexec %s %s "$@"\n' "${qemu[*]}" "$programs/orinoco-engine" >"$state/worker"
    chmod +x "$state/worker"
    : >"$state/config.toml"
    # The emulator's own thread stands beside the worker's one, which therefore cannot close its sandbox.
    local settings=(--config "$state" --set broker.mode=external --set "mqtt.port=$port" --set node.name=qemu
        --set "paths.state_dir=$state/state" --set "paths.models_dir=$(dirname "$model")"
        --set "model.active=$(basename "$model" .gguf)" --set "engine.worker_path=$state/worker"
        --set engine.sandbox=off --set engine.backend=cpu --set engine.n_threads=1 --set model.n_ctx=512
        --set engine.load_stall_seconds=300 --set engine.step_stall_seconds=300)
    "${qemu[@]}" "$programs/orinoco" run "${settings[@]}" >"$state/log" 2>&1 &
    answer=$("${qemu[@]}" "$programs/orinoco" ask --host 127.0.0.1 --port "$port" --node qemu --accept-seconds 300 \
        "Name a river." 2>"$state/ask.log") || { tail -n 30 "$state/log" "$state/ask.log" >&2 && die "no answer"; }
    say "$answer"
    [ "$(wc -w <<<"$answer")" -ge 2 ] || die "that is no answer"
    say "answered under qemu in $((SECONDS - from)) s"
}

unit_tests() {
    local program qemu=()
    in_root cargo test --release --locked --no-run --target "$target" -p orinoco -p orinoco-engine --lib || die "the tests do not build"
    mapfile -t qemu < <(emulator)
    for program in orinoco orinoco_engine; do
        # The newest: cargo keeps those of older builds beside it.
        program=$(find "$programs/deps" -maxdepth 1 -name "$program-*" -executable -type f -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
        step "$(basename "$program")"
        (cd "$repo_dir" && "${qemu[@]}" "$program" --test-threads 2) >&2 || die "a unit test failed under qemu"
    done
}

make_root || {
    say "the root for the build could not be made"
    exit 77
}
for each in "${steps[@]}"; do
    step "$each"
    case "$each" in
        build) build ;;
        check) check ;;
        ask) ask ;;
        test) unit_tests ;;
        deb) CARGO_TARGET_DIR=$work "$repo_dir/scripts/deb.sh" --no-build --target "$target" --out "$repo_dir/target/debian" ;;
    esac
done
