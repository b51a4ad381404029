#!/usr/bin/env bash
# Builds Orinoco's packages for the GPU of the Jetson Orin that it runs on, and installs them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/install-jetson.sh [--dry-run] [--no-install] [--no-mosquitto] [--no-swap]

On a Jetson Orin with JetPack 6 (L4T 36) or newer and Rust: installs what the build needs (apt), builds daemon and
worker with CUDA for sm_87, packs them (scripts/deb.sh), and installs the packages. Start it as the user who has Rust;
it asks for root where it needs it. Run it again after a power cut, Ctrl-C or a lost connection: what was compiled is
kept in target/deb/build, and it goes on from there.

    --dry-run        say what would be done, with disk, memory, swap and time, and change nothing
    --no-install     stop when the packages are in target/packages
    --no-mosquitto   the broker that the daemon brings along instead of Mosquitto
    --no-swap        never make a swap file; the build then has fewer jobs

What it takes: 10 GiB of disk, and for each compiler of CUDA that runs at a time 2.5 GiB of memory. A board with less
than 10 GiB of memory and swap on disk gets a swap file of 8 GiB for the time of the build, 8 GiB of disk more, on the
disk of this clone. Time:
an hour or two, as far as can be told without a board; no run on one is recorded yet. A power mode with all cores and
a fan help.
END
}

GIB=$((1 << 30))
readonly GIB
BUILD_BYTES=$((10 * GIB))       # target/deb/build, the crates, and the packages
JOB_BYTES=$((5 * GIB / 2))      # nvcc on llama.cpp's largest kernels (flash attention)
SWAP_BELOW_BYTES=$((10 * GIB))  # two such jobs, the system, and what runs on the board
SWAP_BYTES=$((8 * GIB))
readonly BUILD_BYTES JOB_BYTES SWAP_BELOW_BYTES SWAP_BYTES
# On the disk whose room is counted: the system's may be a card.
swap_file=$repo_dir/target/orinoco-build.swap

dry_run='' install=1 mosquitto=1 swap_allowed=1
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --dry-run) dry_run=1 ;;
        --no-install) install='' ;;
        --no-mosquitto) mosquitto='' ;;
        --no-swap) swap_allowed='' ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done

# meminfo KEY: bytes, of the board's /proc/meminfo.
meminfo() {
    local kib
    kib=$(sed -n "s/^$1: *\([0-9]*\) kB$/\1/p" "${ROOT:-}/proc/meminfo")
    [ -n "$kib" ] || die "no $1 in ${ROOT:-}/proc/meminfo"
    printf '%s\n' $((kib * 1024))
}

# Bytes of swap on a disk that are free. zram, which JetPack sets up, is memory by another name.
disk_swap() {
    local swaps=${ROOT:-}/proc/swaps
    [ -r "$swaps" ] || swaps=/dev/null
    awk 'NR > 1 && $1 !~ /zram/ { kib += $3 - $4 } END { printf "%.0f\n", kib * 1024 }' "$swaps"
}

# Is the swap file in use? Also that of a run that was killed; it is removed at the end of this one.
swap_is_on() { [ -r "${ROOT:-}/proc/swaps" ] && grep -qF "$swap_file " "${ROOT:-}/proc/swaps"; }

gib() { awk -v bytes="$1" -v gib="$GIB" 'BEGIN { printf "%.1f GiB", bytes / gib }'; }

# Tests say these two for the boards that they make up.
built_bytes() {
    [ -z "${BUILT_BYTES:-}" ] || { printf '%s\n' "$BUILT_BYTES" && return 0; }
    local found
    found=$(du -s -B1 "$repo_dir/target/deb/build" 2>/dev/null | cut -f 1)
    printf '%s\n' "${found:-0}"
}
disk_free_bytes() {
    [ -z "${DISK_FREE_BYTES:-}" ] || { printf '%s\n' "$DISK_FREE_BYTES" && return 0; }
    df --output=avail -B1 "$repo_dir" | tail -n 1 | tr -d ' '
}

detect_board
[ "$board" = orin ] || die "${board_name}: ${board_reason:-this is no Jetson Orin}. scripts/deb.sh makes packages on other machines; scripts/quickstart.sh runs without any"
choose_build ""
memory=$(meminfo MemTotal)
available=$(meminfo MemAvailable)
swap=$(disk_swap)
disk=$(disk_free_bytes)

rust_note=$(command -v cargo || true)
if [ -z "$rust_note" ] && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    rust_note=${CARGO_HOME:-$HOME/.cargo}/bin/cargo
fi
[ -n "$rust_note" ] || [ -z "${SUDO_USER:-}" ] \
    || die "root has no Rust. Start this as $SUDO_USER, without sudo; it asks for root where it needs it"

# What an interrupted run has made is on the disk already. Packing and crates want some in any case.
made_swap=0 disk_wanted=$((BUILD_BYTES - $(built_bytes)))
[ "$disk_wanted" -ge "$GIB" ] || disk_wanted=$GIB
if [ $((memory + swap)) -lt $SWAP_BELOW_BYTES ] && [ -n "$swap_allowed" ]; then
    made_swap=$SWAP_BYTES
    [ -e "$swap_file" ] || disk_wanted=$((disk_wanted + SWAP_BYTES))
fi
[ "$disk" -ge "$disk_wanted" ] \
    || die "$(gib "$disk") are free where $repo_dir is, and the build takes $(gib "$disk_wanted"). Clone onto the NVMe drive, or make room"
jobs=$(((available + swap + made_swap) / JOB_BYTES))
cores=${CORES:-$(nproc)}
[ "$jobs" -le "$cores" ] || jobs=$cores
[ "$jobs" -ge 1 ] || die "$(gib "$available") of memory are available, and one compiler of CUDA takes $(gib $JOB_BYTES). Stop what uses the memory, or leave out --no-swap"

packages=(orinoco)
[ -z "$mosquitto" ] || packages+=(orinoco-mosquitto)
swap_note='no swap file'
[ "$made_swap" = 0 ] || swap_note="a swap file of $(gib "$made_swap") ($swap_file) until the build ends"
install_note=no
[ -z "$install" ] || install_note=${packages[*]}
cat >&2 <<END
$board_name
    build      $build_note
    memory     $(gib "$memory"), $(gib "$available") available, $(gib "$swap") of swap on disk; $swap_note
    jobs       $jobs at a time
    disk       $(gib "$disk_wanted") of $(gib "$disk")
    Rust       ${rust_note:-missing; https://rustup.rs, as the user who builds}
    time       an hour or two, not measured on a board yet; target/deb/build keeps what is done
    install    $install_note
END
[ -z "$dry_run" ] || exit 0

# What needs no long wait comes first: a build that cannot begin changes nothing.
need_rust

# The swap file goes with the script, however it ends. One that a power cut left behind is made anew.
# shellcheck disable=SC2317 # called by the trap
remove_swap() {
    as_root swapoff "$swap_file" 2>/dev/null || true
    as_root rm -f "$swap_file"
}
make_swap() {
    mkdir -p "$(dirname "$swap_file")"
    remove_swap
    as_root fallocate -l "$made_swap" "$swap_file" \
        && as_root chmod 0600 "$swap_file" \
        && as_root mkswap "$swap_file" >/dev/null \
        && as_root swapon "$swap_file"
}
if [ "$made_swap" != 0 ] || swap_is_on; then
    trap remove_swap EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi
if [ "$made_swap" != 0 ]; then
    step "making a swap file of $(gib "$made_swap")"
    make_swap || die "no swap file could be made on the disk of $repo_dir. Make swap by hand, or add --no-swap for a slower build"
fi

want_build_tools
want dpkg-dev "finds out which libraries the programs need" have dpkg-shlibdeps
install_wanted
export PATH="$repo_dir/target/deb/tools/bin:$PATH"
if ! cargo deb --version >/dev/null 2>&1; then
    step "building cargo-deb"
    cargo install --locked --no-default-features --root "$repo_dir/target/deb/tools" cargo-deb@3.8.0 >&2
fi

step "building with $jobs jobs; interrupted, it goes on from here when it is run again"
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs CARGO_BUILD_JOBS=$jobs NUM_JOBS=$jobs
out=$repo_dir/target/packages
rm -f "$out"/*.deb
"$repo_dir/scripts/deb.sh" --out "$out" >&2

[ -n "$install" ] || {
    say "the packages are in $out"
    exit 0
}
step "installing ${packages[*]}"
files=()
for package in "${packages[@]}"; do
    files+=("$(compgen -G "$out/${package}_*.deb")")
done
as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --reinstall --allow-downgrades "${files[@]}" >&2
cat >&2 <<'END'

Orinoco runs. Next, a model for this board, and a look at everything that could be wrong with it:

    orinoco models fit MODEL.gguf
    sudo -u orinoco orinoco models add MODEL.gguf
    sudo orinoco doctor
END
