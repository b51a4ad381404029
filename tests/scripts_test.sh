#!/usr/bin/env bash
# Tests of scripts/: made-up boards in a temporary tree, and what the scripts say of them.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# tree NAME COMPATIBLE L4T [FILE...]: a root tree; files are made executable. "-" leaves a part out.
tree() {
    local root=$work/$1 compatible=$2 l4t=$3 file
    shift 3
    mkdir -p "$root/proc/device-tree" "$root/etc"
    [ "$compatible" = - ] || printf '%s\0' nvidia,p0000-0000+p0000-0000 "$compatible" >"$root/proc/device-tree/compatible"
    [ "$compatible" = - ] || printf 'Made-up board\0' >"$root/proc/device-tree/model"
    [ "$l4t" = - ] || printf '# R%s (release), REVISION: %s, GCID: 1, BOARD: generic, EABI: aarch64\n# KERNEL_VARIANT: oot\n' \
        "${l4t%%.*}" "${l4t#*.}" >"$root/etc/nv_tegra_release"
    for file; do
        mkdir -p "$root/$(dirname "$file")"
        : >"$root/$file"
        chmod +x "$root/$file"
    done
}

# expect NAME CODE PATTERN COMMAND...: exit code, and a pattern in what it prints.
expect() {
    local name=$1 code=$2 pattern=$3 output found=0
    shift 3
    output=$("$@" 2>&1) || found=$?
    if [ "$found" = "$code" ] && grep -qE -- "$pattern" <<<"$output"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s: exit code %s, expected %s; pattern: %s\n%s\n' "$name" "$found" "$code" "$pattern" "$output"
    fi
}

# The choice for a made-up board, as one line.
build_for() {
    # $1 is expanded by the inner shell.
    # shellcheck disable=SC2016
    ROOT=$work/$1 CUDA_PATH='' bash -c '. scripts/lib.sh; detect_board; choose_build $1
        echo "board=$board features=$build_features dir=${cuda_dir#"$ROOT"} arch=$cuda_arch cpu=$use_cpu"' _ "${2:-}"
}

plan() { ROOT=$work/$1 CUDA_PATH='' scripts/quickstart.sh --plan "${@:2}"; }

tree orin nvidia,tegra234 36.4.7 usr/local/cuda/bin/nvcc
tree orin_versioned nvidia,tegra234 36.5.0 usr/local/cuda-12.6/bin/nvcc
tree orin_yocto nvidia,tegra234 - usr/local/cuda-12.6/bin/nvcc
tree orin_new nvidia,tegra234 39.2.0 usr/local/cuda/bin/nvcc
tree orin_old nvidia,tegra234 35.4.1 usr/local/cuda/bin/nvcc
tree orin_bare nvidia,tegra234 36.4.7
tree xavier nvidia,tegra194 35.4.1 usr/local/cuda/bin/nvcc
tree tx2 nvidia,tegra186 32.7.4 usr/local/cuda/bin/nvcc
tree nano nvidia,tegra210 32.7.4 usr/local/cuda/bin/nvcc
tree thor nvidia,tegra264 38.2.0 usr/local/cuda/bin/nvcc
tree strange - 36.4.7
tree raspberry brcm,bcm2712 -
tree pc - -
tree pc_gpu - - dev/nvidia0 usr/local/cuda/bin/nvcc
tree pc_gpu_no_nvcc - - dev/nvidia0 dev/nvidiactl

orin='^board=orin features=orinoco-engine/cuda,orinoco-engine/cuda-no-vmm'
expect orin_finds_cuda_outside_path 0 "$orin dir=/usr/local/cuda arch=87 cpu=$" build_for orin
expect orin_finds_a_versioned_cuda 0 "$orin dir=/usr/local/cuda-12.6 arch=87 cpu=$" build_for orin_versioned
expect orin_without_release_file_is_orin 0 "$orin dir=/usr/local/cuda-12.6 arch=87 cpu=$" build_for orin_yocto
expect orin_with_newer_l4t_is_taken 0 "$orin" build_for orin_new
expect orin_names_itself 0 'Made-up board, L4T 36.4.7: building for .*architecture 87' plan orin
expect orin_with_jetpack_5_is_told_to_update 1 'L4T 35.4.1; Orinoco needs JetPack 6' plan orin_old
expect orin_without_cuda_is_told_what_to_install 1 'no CUDA toolkit.*nvidia-jetpack' plan orin_bare
expect xavier_is_refused_with_the_reason 1 'Xavier: JetPack 5 with CUDA 11.4' plan xavier
expect tx2_is_refused_with_the_reason 1 'TX2: JetPack 4 with CUDA 10.2' plan tx2
expect nano_is_refused_with_the_reason 1 'Nano .*JetPack 4 with CUDA 10.2' plan nano
expect unknown_tegra_is_refused_by_name 1 'nvidia,tegra264.*only Orin' plan thor
expect l4t_without_a_known_chip_is_refused 1 'L4T 36.4.7 is installed but' plan strange
expect refused_board_may_use_its_cores 0 'building for the CPU, as asked for' plan nano --cpu
expect raspberry_is_a_cpu_board 0 '^board=pc features= dir= arch= cpu=$' build_for raspberry
expect pc_without_gpu_uses_the_cpu 0 '^board=pc features= dir= arch= cpu=$' build_for pc
expect pc_with_gpu_uses_it 0 '^board=pc features=orinoco-engine/cuda dir=/usr/local/cuda arch=native cpu=$' build_for pc_gpu
expect pc_gpu_without_nvcc_says_cpu_aloud 0 'no CUDA toolkit' plan pc_gpu_no_nvcc
expect pc_gpu_without_nvcc_tells_the_daemon 0 'cpu=1$' build_for pc_gpu_no_nvcc

expect quickstart_explains_itself 0 '--once "PROMPT"' scripts/quickstart.sh --help
expect quickstart_refuses_unknown_arguments 1 'unknown argument: --onec' scripts/quickstart.sh --onec hello
expect quickstart_once_needs_a_prompt 1 '--once needs a prompt' scripts/quickstart.sh --once
expect quickstart_names_a_missing_model 1 'GGUF=/nowhere/x.gguf: no such file' env GGUF=/nowhere/x.gguf scripts/quickstart.sh --cpu --once hi
expect test_explains_itself 0 'target/test-deps' scripts/test.sh --help
expect fetch_refuses_unknown_models 1 "no model named 'llama'" scripts/fetch-models.sh --dir "$work/models" llama

mkdir -p "$work/models"
echo garbage >"$work/models/SmolLM2-135M-Instruct.Q4_1.gguf"
expect fetch_never_overwrites_a_wrong_model 1 'its SHA-256 is .*, expected b179c952' scripts/fetch-models.sh --dir "$work/models" smollm2
expect wrong_model_is_still_there 0 '^garbage$' cat "$work/models/SmolLM2-135M-Instruct.Q4_1.gguf"

# Installing on a board: the trees of real and made-up Orins, with a compiler of CUDA beside them.
mkdir -p "$work/cuda/bin" && : >"$work/cuda/bin/nvcc" && chmod +x "$work/cuda/bin/nvcc"
# What would change something: a dry run starts none of it.
mkdir "$work/forbidden"
for program in apt-get sudo cargo fallocate mkswap swapon; do
    # shellcheck disable=SC2016 # the program's own name
    printf '#!/bin/sh\necho "$0" >>%s/started\nexit 99\n' "$work" >"$work/forbidden/$program"
    chmod +x "$work/forbidden/$program"
done
# jetson BOARD DISK_GIB ARGUMENT...: what the script would do there.
jetson() {
    local tree=$PWD/tests/boards/$1
    [ -d "$tree" ] || tree=$work/$1
    PATH=$work/forbidden:$PATH ROOT=$tree CUDA_PATH=$work/cuda CORES=6 DISK_FREE_BYTES=$(($2 << 30)) BUILT_BYTES=${built:-0} \
        scripts/install-jetson.sh --dry-run "${@:3}"
}
jetson_again() { built=$((6 << 30)) jetson "$@"; }
expect jetson_nano_gets_swap_and_fewer_jobs 0 'a swap file of 8.0 GiB .*until the build ends' jetson orin-nano-8gb 40
expect jetson_nano_without_swap_builds_slowly 0 'no swap file' jetson orin-nano-8gb 40 --no-swap
expect jetson_nano_counts_the_swap_file_as_disk 1 'the build takes 18.0 GiB' jetson orin-nano-8gb 12
expect jetson_nx_needs_no_swap 0 'no swap file' jetson orin-nx-16gb 12
expect jetson_agx_uses_all_its_cores 0 'jobs       6 at a time' jetson agx-orin-64gb 12
expect jetson_agx_names_disk_and_packages 0 'install    orinoco orinoco-mosquitto' jetson agx-orin-64gb 12
expect jetson_without_mosquitto_installs_one_package 0 'install    orinoco$' jetson agx-orin-64gb 12 --no-mosquitto
expect jetson_only_packs_when_told 0 'install    no$' jetson agx-orin-64gb 12 --no-install
expect jetson_says_that_a_disk_is_small 1 '5.0 GiB are free .*takes 10.0 GiB.*NVMe' jetson agx-orin-64gb 5
expect jetson_says_the_time_is_not_measured 0 'not measured on a board yet' jetson orin-nx-16gb 12
expect jetson_refuses_jetpack_5 1 'L4T 35.4.1; Orinoco needs JetPack 6' jetson orin_old 40
expect jetson_refuses_a_xavier 1 'Xavier: JetPack 5' jetson xavier 40
expect jetson_refuses_a_pc 1 'no Jetson Orin.*scripts/deb.sh' jetson pc 40
expect jetson_refuses_unknown_arguments 1 'unknown argument: --fast' jetson orin-nx-16gb 40 --fast
tree orin_starved nvidia,tegra234 36.4.7
printf 'MemTotal: 7990000 kB\nMemAvailable: 1990000 kB\n' >"$work/orin_starved/proc/meminfo"
printf 'Filename Type Size Used Priority\n/dev/zram0 partition 3995000 0 5\n' >"$work/orin_starved/proc/swaps"
expect jetson_takes_zram_for_no_memory 1 '1.9 GiB of memory are available.*takes 2.5 GiB' jetson orin_starved 40 --no-swap
expect jetson_with_swap_has_room_after_all 0 'jobs       3 at a time' jetson orin_starved 40
printf '/swap file 8388608 0 -2\n' >>"$work/orin_starved/proc/swaps"
expect jetson_uses_the_swap_that_is_there 0 '8.0 GiB of swap on disk; no swap file' jetson orin_starved 12
expect jetson_says_where_rust_is 0 'Rust       .*/forbidden/cargo$' jetson orin-nx-16gb 12
expect jetson_goes_on_with_the_disk_that_is_left 0 'disk       4.0 GiB of 5.0 GiB' jetson_again orin-nx-16gb 5
expect jetson_dry_run_starts_nothing 1 '' test -e "$work/started"
expect jetson_dry_run_would_have_been_seen 99 '' "$work/forbidden/cargo"
expect jetson_dry_run_is_told_by_its_traces 0 forbidden/cargo cat "$work/started"

# A whole run up to a build that fails, with stand-ins for what changes the machine, in a clone of its own.
mkdir -p "$work/clone" "$work/stand-in"
cp -r scripts Cargo.toml "$work/clone/"
clone=$(realpath "$work/clone")
for program in apt-get mkswap swapon swapoff; do
    printf '#!/bin/sh\necho %s >>%s/done\n' "$program" "$work" >"$work/stand-in/$program"
done
# shellcheck disable=SC2016 # for the scripts that are written
{
    printf '#!/bin/sh\necho fallocate >>%s/done\n: >"$3"\n' "$work" >"$work/stand-in/fallocate"
    printf '#!/bin/sh\nexec "$@"\n' >"$work/stand-in/sudo"
    printf '#!/bin/sh\ncase "$*" in --version) echo cargo 1.999.0 ;; "deb --version") ;; *) echo "cargo $1 with $CARGO_BUILD_JOBS" >>%s/done && exit 1 ;; esac\n' "$work" >"$work/stand-in/cargo"
}
chmod +x "$work/stand-in"/*
install_on() {
    rm -f "$work/done"
    PATH=$work/stand-in:$PATH ROOT=$work/$1 CUDA_PATH=$work/cuda CORES=6 DISK_FREE_BYTES=$((40 << 30)) "$clone/scripts/install-jetson.sh" "${@:2}"
}
did() { tr '\n' ' ' <"$work/done"; }
cp -r tests/boards/orin-nano-8gb "$work/nano_8gb"
expect jetson_says_that_the_build_failed 1 'the build failed' install_on nano_8gb
expect jetson_takes_its_swap_away_however_it_ends 0 '^swapoff fallocate mkswap swapon cargo build with [1-6] swapoff $' did
expect jetson_leaves_no_swap_file 1 '' test -e "$clone/target/orinoco-build.swap"
printf 'Filename Type Size Used Priority\n%s/target/orinoco-build.swap file 8388608 0 -2\n' "$clone" >"$work/nano_8gb/proc/swaps"
expect jetson_uses_the_swap_of_a_run_that_was_killed 1 'no swap file' install_on nano_8gb
expect jetson_takes_that_swap_away_too 0 '^cargo build with [1-6] swapoff $' did
printf '#!/bin/sh\necho cargo 1.0.0\n' >"$work/stand-in/cargo"
cp tests/boards/orin-nano-8gb/proc/swaps "$work/nano_8gb/proc/swaps"
expect jetson_with_an_old_rust_changes_nothing 1 'cargo is 1.0.0, this needs' install_on nano_8gb
expect jetson_has_changed_nothing 1 '' test -e "$work/done"

printf 'scripts: %s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
