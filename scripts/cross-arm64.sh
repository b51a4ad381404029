#!/usr/bin/env bash
# Builds Orinoco for aarch64 on another machine, for the processor, and tries it under qemu.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/cross-arm64.sh [build] [check] [ask] [test] [boot] [deb]

As root on an x86-64 Debian or Ubuntu. Makes a Debian in target/cross-arm64/root with a Rust that knows aarch64
(trixie-backports) and the cross compiler and glibc 2.31 of bullseye, so that what it builds runs wherever glibc is
2.31 or newer: JetPack 6 has 2.35. Nothing of this machine but cargo's registry is used. 6 GiB of disk.

    build    daemon and worker, into target/cross-arm64/aarch64-unknown-linux-gnu/release
    check    they ask for no newer glibc or libstdc++ than JetPack 6 has
    ask      the daemon under qemu-user answers a prompt with SmolLM2, through Mosquitto
    test     the unit tests of both packages, under qemu-user
    boot     what needs a kernel of aarch64: in a machine made by qemu with Debian's kernel, the tests of the worker's
             sandbox, and an answer by a worker that has closed it
    deb      packages for arm64, without CUDA

Without a word: build, check, ask, test, boot. Ends with 77 where the root's packages are not to be had.
END
}

steps=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        build | check | ask | test | boot | deb) steps+=("$1") ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(build check ask test boot)
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
    [ ! -e "$root.done" ] || [ ! -e "$root/machine" ] || return 0
    step "making a root for the build"
    rm -rf "$root" && mkdir -p "$work"
    # The standard library for arm64 is unpacked, not installed: it would bring arm64's glibc along. So are the kernel
    # and the shell of the machine that is booted.
    # The hooks' own arguments.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=apt --architectures=amd64,arm64 --aptopt='APT::Install-Recommends "false"' \
        --include=ca-certificates,rustc,cargo,gcc,g++,cmake,make,git,libclang-dev,openssl,qemu-user,qemu-system-arm,cpio,g++-10-aarch64-linux-gnu,libc6-dev-arm64-cross \
        --setup-hook='mkdir -p "$1/etc/apt/preferences.d" && cat >"$1/etc/apt/preferences.d/cross" <<END
Package: *-arm64-cross gcc-10-cross-base *-10-aarch64-linux-gnu *-10-aarch64-linux-gnu-base
Pin: release n=bullseye
Pin-Priority: 1001

Package: rustc cargo libstd-rust*
Pin: release n=trixie-backports
Pin-Priority: 1001
END' \
        --customize-hook='cd "$1/tmp" && chroot "$1" sh -ec "cd /tmp && apt-get download -q libstd-rust-dev:arm64/trixie-backports
            dpkg -x libstd-rust-dev_*.deb / && rm libstd-rust-dev_*.deb
            kernel=\$(apt-cache depends linux-image-arm64:arm64 | sed -n \"s/.*Depends: \(linux-image-[^:]*\).*/\1/p\" | head -n 1)
            apt-get download -q \$kernel:arm64 busybox-static:arm64
            mkdir /machine
            for package in ./*.deb; do dpkg -x \$package /machine && rm \$package; done
            rm -r /machine/usr/lib/modules"' \
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
    ROOT=$root unshare --mount --propagation private sh "$root/in" "$repo_dir" "$root" "$work" "${CARGO_HOME:-$HOME/.cargo}" "$@"
}

# With the instructions of Armv8.2, like Orin's Cortex-A78AE, and no newer ones.
emulator() { printf '%s\n' qemu-aarch64-static -cpu cortex-a76 -L "$root/usr/aarch64-linux-gnu"; }

build() {
    local from=$SECONDS
    in_root cargo build --release --locked --target "$target" -p orinoco -p orinoco-engine >&2 || die "the build failed"
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

# test_programs: those of the unit tests, one a line, the engine's last.
test_programs() {
    in_root cargo test --release --locked --no-run --target "$target" -p orinoco -p orinoco-engine --lib \
        --message-format json-render-diagnostics >"$work/tests.json" || return 1
    python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable") and found["profile"]["test"]:
        print(found["executable"].replace("/target", sys.argv[1], 1))' "$work" <"$work/tests.json" | LC_ALL=C sort
}

# What the emulator of a process cannot do, each by its name. `boot` has the tests of the sandbox on a kernel of aarch64.
skipped=(
    # qemu makes up /proc/self/stat, without page faults.
    board::root::tests::a_kept_file_of_the_kernel_gives_new_values_at_each_read
    # qemu passes no filter of system calls on to the kernel.
    sandbox::tests::a_folder_for_the_cache_may_be_written_where_there_is_one
    sandbox::tests::a_gpus_driver_gets_a_socket_that_nobody_is_answered_at
    sandbox::tests::a_gpus_driver_opens_as_fopen_does_to_write_and_in_no_other_way_that_makes_a_file
    sandbox::tests::what_a_worker_does_all_day_still_works
    sandbox::tests::what_an_intruder_would_call_is_not_permitted
    # They hold work to seconds of a processor, and the emulator is many times slower than one.
    grammar::tests::a_hostile_schema_costs_at_most_its_limit
    template::tests::bombs_are_stopped
)

unit_tests() {
    local programs program
    "$repo_dir/scripts/fetch-templates.sh"
    programs=$(test_programs) || die "the tests do not build"
    [ "$(wc -l <<<"$programs")" = 2 ] || die "cargo names these test programs, not two: $programs"
    for program in $programs; do
        step "$(basename "$program")"
        # In the root, as the sources are where they were compiled; its emulator knows openat2, that of Debian 12 does not.
        in_root qemu-aarch64 -cpu cortex-a76 -L /usr/aarch64-linux-gnu "/target/${program#"$work"/}" --test-threads 2 --exact \
            "${skipped[@]/#/--skip=}" >&2 || die "a unit test failed under qemu"
    done
}

boot() {
    local initramfs=$root/machine/initramfs engine_tests library log=$work/machine.log from=$SECONDS found=0
    engine_tests=$(test_programs | tail -n 1) || die "the tests do not build"
    "$repo_dir/scripts/fetch-models.sh" smollm2
    rm -rf "$initramfs" && mkdir -p "$initramfs"/{bin,lib,opt,models,root,proc,sys,dev,tmp,src/engine}
    cp "$root/machine/usr/bin/busybox" "$initramfs/bin/"
    cp "$repo_dir/tests/aarch64_init.sh" "$initramfs/init"
    for library in ld-linux-aarch64.so.1 libc.so.6 libdl.so.2 libgcc_s.so.1 libgomp.so.1 libm.so.6 libpthread.so.0 librt.so.1 libstdc++.so.6; do
        cp -L "$root/usr/aarch64-linux-gnu/lib/$library" "$initramfs/lib/"
    done
    cp "$programs/orinoco" "$programs/orinoco-engine" "$initramfs/opt/"
    cp "$engine_tests" "$initramfs/opt/engine-tests"
    cp "$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$initramfs/models/smollm2.gguf"
    # In the root: programs of aarch64 are stripped there, and the emulator runs there, without a network.
    # shellcheck disable=SC2016 # for the shell in the root
    in_root sh -ec 'cd /machine/initramfs
        aarch64-linux-gnu-strip opt/*
        find . | cpio --quiet -o -H newc >/machine/initramfs.cpio
        exec timeout 1800 qemu-system-aarch64 -M virt -cpu cortex-a76 -smp 2 -m 2G -nographic -nic none -no-reboot \
            -kernel /machine/boot/vmlinuz-* -initrd /machine/initramfs.cpio -append "quiet panic=-1"' >"$log" 2>&1 </dev/null || found=$?
    grep -a '^machine: ' "$log" | tr -d '\r' >&2 || true
    grep -qa '^machine: that is all' "$log" || { tail -n 40 "$log" >&2 && die "the machine ended too early, with $found"; }
    grep -qa '^machine: sandbox tests ended with 0' "$log" || { grep -a -A 8 'panicked\|FAILED\|failed' "$log" >&2 && die "a test of the sandbox failed on a kernel of aarch64"; }
    grep -qaE '^machine: answer: \S+ +\S+' "$log" || { tail -n 60 "$log" >&2 && die "no answer"; }
    grep -qa '^machine: worker: NoNewPrivs: 1 Seccomp: 2' "$log" || die "the worker that answered has no filter of system calls"
    ! grep -qa 'sandbox is not whole' "$log" || die "the worker's sandbox is not whole: $(grep -a 'not whole' "$log")"
    say "$(grep -a 'test result' "$log" | tr -d '\r'); an answer from inside the sandbox; $((SECONDS - from)) s"
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
        boot) boot ;;
        deb) CARGO_TARGET_DIR=$work "$repo_dir/scripts/deb.sh" --no-build --target "$target" --out "$repo_dir/target/debian" ;;
    esac
done
