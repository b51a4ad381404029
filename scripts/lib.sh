# shellcheck shell=bash disable=SC2034 # the scripts that source this read the variables set here
# What the scripts here share: messages, installing packages, telling boards apart. Sourced, never run.
#
# Everything that these functions print goes to stderr: stdout belongs to answers.

repo_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

# step TEXT: what happens now, and why.
step() { printf '\n==> %s\n' "$*" >&2; }

die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# newer_or_same A B: is version A at least version B?
newer_or_same() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# as_root COMMAND...: through sudo where we are not root.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo; as root run:  $*"
    fi
}

# Packages wanted so far, and the reasons, for one apt call and one message.
apt_packages=()
apt_reasons=()

# want PACKAGE REASON TEST...: note the package down unless the test command succeeds.
want() {
    local package=$1 reason=$2
    shift 2
    "$@" >/dev/null 2>&1 && return 0
    apt_packages+=("$package")
    apt_reasons+=("    $package: $reason")
}

# install_wanted: one apt-get for all that `want` noted down. Services are not started.
install_wanted() {
    [ ${#apt_packages[@]} -gt 0 ] || return 0
    step "installing ${#apt_packages[@]} package(s)"
    printf '%s\n' "${apt_reasons[@]}" >&2
    have apt-get || die "no apt-get here; install these with your package manager and run again: ${apt_packages[*]}"
    local environment=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1)
    as_root "${environment[@]}" apt-get -q update >&2 \
        || say "apt-get update failed; trying with the package lists that are there"
    as_root "${environment[@]}" apt-get -q install -y --no-install-recommends "${apt_packages[@]}" >&2 \
        || die "apt-get could not install: ${apt_packages[*]}"
    apt_packages=()
    apt_reasons=()
}

# The library alone is not enough: bindgen also wants clang's own stddef.h.
has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    compgen -G "/usr/lib/llvm-*/lib/libclang*.so*" >/dev/null \
        && compgen -G "/usr/lib/llvm-*/lib/clang/*/include/stddef.h" >/dev/null
}

want_build_tools() {
    want cmake "llama.cpp is built with it" have cmake
    want g++ "llama.cpp's compiler" have g++
    want make "llama.cpp is built with it" have make
    want libclang-dev "bindgen reads llama.cpp's headers through it" has_libclang
    want git "llama.cpp's build asks it for a version" have git
    want python3 "unpacks the models" have python3
    want python3-pip "fetches the models" python3 -m pip --version
    want ca-certificates "downloads over https" test -e /etc/ssl/certs/ca-certificates.crt
}

# need_rust: cargo, new enough. The one thing that we do not install ourselves.
need_rust() {
    local wanted found
    # rustup puts cargo there; a shell that started before does not know it yet.
    have cargo || export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$repo_dir/Cargo.toml" | head -n 1)
    have cargo || die "no cargo found; install Rust $wanted or newer from https://rustup.rs (your own choice, so not done here)"
    found=$(cargo --version | cut -d' ' -f2)
    newer_or_same "$found" "$wanted" || die "cargo is $found, this needs $wanted or newer:  rustup update stable"
}

# detect_board: sets
#   board        pc, orin, or refused
#   board_name   for messages
#   board_reason why it is refused
# Reads under $ROOT, so that a test can point it at a tree of its own.
detect_board() {
    local root=${ROOT:-} compatible='' l4t=''
    board=pc board_name="$(uname -m) Linux" board_reason=''
    if [ -r "$root/proc/device-tree/compatible" ]; then
        compatible=$(tr '\0' '\n' <"$root/proc/device-tree/compatible")
    fi
    if [ -r "$root/proc/device-tree/model" ]; then
        board_name=$(tr -d '\0' <"$root/proc/device-tree/model")
    fi
    if [ -r "$root/etc/nv_tegra_release" ]; then
        l4t=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' "$root/etc/nv_tegra_release" | head -n 1)
    fi
    case "$compatible" in
        *nvidia,tegra234*) board=orin ;;
        *nvidia,tegra194*) refuse "it is a Xavier: JetPack 5 with CUDA 11.4 was its last system; Orinoco is built and tested for JetPack 6 and newer" ;;
        *nvidia,tegra186*) refuse "it is a TX2: JetPack 4 with CUDA 10.2 was its last system, whose compiler is too old for llama.cpp's CUDA code" ;;
        *nvidia,tegra210*) refuse "it is a Nano or TX1 of the first generation: JetPack 4 with CUDA 10.2 was its last system, whose compiler is too old for llama.cpp's CUDA code" ;;
        *nvidia,tegra*) refuse "its chip ($(printf '%s\n' "$compatible" | grep -m 1 'nvidia,tegra')) is none that Orinoco was built for; only Orin (nvidia,tegra234) is" ;;
        *) [ -z "$l4t" ] || refuse "L4T $l4t is installed but the device tree names no Tegra that is known here" ;;
    esac
    [ "$board" = orin ] || return 0
    [ -n "$l4t" ] || return 0
    board_name="$board_name, L4T $l4t"
    newer_or_same "$l4t" 36 || refuse "it runs L4T $l4t; Orinoco needs JetPack 6 (L4T 36) or newer: flash the board anew"
}

refuse() {
    board=refused
    board_reason=$1
}

# find_cuda: prints the folder of a CUDA toolkit, or nothing. L4T leaves nvcc out of PATH.
find_cuda() {
    local root=${ROOT:-} dir nvcc
    for dir in "${CUDA_PATH:-}" "$root/usr/local/cuda" "$root"/usr/local/cuda-*; do
        if [ -n "$dir" ] && [ -x "$dir/bin/nvcc" ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    if [ -z "$root" ] && nvcc=$(command -v nvcc); then
        nvcc=$(readlink -f "$nvcc")
        printf '%s\n' "${nvcc%/bin/nvcc}"
    fi
}

# choose_build: after detect_board; sets
#   build_features  for cargo
#   cuda_dir        empty: no CUDA
#   cuda_arch       for CMake
#   use_cpu         1: the daemon must be told that the CPU is wanted
#   build_note      why
# choose_build cpu: the operator wants the CPU.
choose_build() {
    build_features='' cuda_dir='' cuda_arch='' use_cpu='' build_note=''
    if [ "${1:-}" = cpu ]; then
        use_cpu=1
        build_note="the CPU, as asked for"
        return 0
    fi
    [ "$board" != refused ] || die "$board_name is not supported: $board_reason. With --cpu Orinoco runs on its processor cores alone."
    if [ "$board" = orin ]; then
        cuda_dir=$(find_cuda)
        [ -n "$cuda_dir" ] || die "$board_name: no CUDA toolkit under /usr/local/cuda; install it with  sudo apt-get install nvidia-jetpack  or choose --cpu"
        # cuda-no-vmm: reserving 32 GiB of addresses fails on Orin (llama.cpp#29142).
        build_features=orinoco-engine/cuda,orinoco-engine/cuda-no-vmm
        cuda_arch=87
        build_note="Orin's GPU with $cuda_dir, architecture 87"
    elif [ -n "$(compgen -G "${ROOT:-}/dev/nvidia[0-9]*")" ]; then
        cuda_dir=$(find_cuda)
        if [ -n "$cuda_dir" ]; then
            build_features=orinoco-engine/cuda
            cuda_arch=native
            build_note="the NVIDIA GPU with $cuda_dir"
        else
            use_cpu=1
            build_note="the CPU: there is an NVIDIA GPU, but no CUDA toolkit (nvcc) to build for it"
        fi
    else
        build_note="the CPU: no NVIDIA GPU found"
    fi
}

# apply_build: puts what choose_build found into the environment of cargo.
apply_build() {
    [ -n "$cuda_dir" ] || return 0
    export PATH="$cuda_dir/bin:$PATH" CUDA_PATH="$cuda_dir" CUDACXX="$cuda_dir/bin/nvcc"
    export CMAKE_CUDA_ARCHITECTURES=$cuda_arch # llama-cpp-sys-2 hands it to CMake
}

# build_orinoco: daemon and worker, as the tests and benches build them, so nothing is compiled twice.
build_orinoco() {
    local features=()
    [ -z "$build_features" ] || features=(--features "$build_features")
    # ORINOCO_CARGO_BUILD: scripts/release.sh has another program drive cargo.
    local subcommand=()
    read -ra subcommand <<<"${ORINOCO_CARGO_BUILD:-build}"
    (cd "$repo_dir" && cargo "${subcommand[@]}" --release --locked --workspace "${features[@]}") >&2 \
        || die "the build failed; its last lines say why"
}
