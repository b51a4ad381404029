#!/usr/bin/env bash
# Parses meta-orinoco with the public layers and resolves the image, for each board; nothing is built.
set -euo pipefail

usage() {
    cat <<'END'
Usage: yocto/parse.sh LAYERS [--deep] [BOARD...]

LAYERS is a folder with clones of the layers, at the commits and under the names of yocto/kas/base.yml:
bitbake, openembedded-core, meta-openembedded, meta-clang, meta-rust-bin, meta-tegra, and meta-rauc where the
bundle is to be checked, too. `kas checkout yocto/kas/orin-nano.yml` makes such a folder.
BOARD is a name in meta-orinoco/conf/boards; without one, all are checked. No network, no root needed; some
minutes for each board, as each is parsed anew. WORK=DIR keeps what was parsed for the next time.

--deep also fetches, unpacks, configures and installs the recipe orinoco, with cargo's registry of this machine as the
download folder and a stand-in for cargo: the real one reads the lock file with the crates that bitbake unpacked and no
others, and nothing is compiled. It needs cargo, and every crate of Cargo.lock in its registry (cargo fetch).

Examples:
    yocto/parse.sh ~/layers
    WORK=/var/tmp/parse yocto/parse.sh ~/layers orin-nx
END
}

case ${1:-} in
    '' | -h | --help) usage && exit 0 ;;
esac
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
here=$(cd "$(dirname "$0")" && pwd)
layers=$(realpath "$1")
shift
deep=
[ "${1:-}" != --deep ] || { deep=1 && shift; }
[ $# -gt 0 ] || set -- orin-nano orin-nx agx-orin
wanted=(openembedded-core/meta meta-openembedded/meta-oe meta-openembedded/meta-python
    meta-openembedded/meta-networking meta-clang meta-rust-bin meta-tegra)
for layer in "${wanted[@]}"; do
    [ -f "$layers/$layer/conf/layer.conf" ] || fail "$layers/$layer is no layer; see yocto/parse.sh --help"
done
[ -x "$layers/bitbake/bin/bitbake" ] || fail "$layers/bitbake/bin/bitbake is missing"
recipes=(orinoco orinoco-ota orinoco-ota-native orinoco-image)
if [ -f "$layers/meta-rauc/conf/layer.conf" ]; then
    wanted+=(meta-rauc)
    recipes+=(orinoco-bundle)
else
    echo "skipped: orinoco-bundle, as there is no $layers/meta-rauc"
fi

work=${WORK:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/locale"
work=$(realpath "$work")
# bitbake wants a UTF-8 locale of this name; a bare machine has none.
if ! locale -a 2>/dev/null | grep -qi '^en_US\.utf-\?8$'; then
    [ -d "$work/locale/en_US.UTF-8" ] || localedef -i en_US -f UTF-8 "$work/locale/en_US.UTF-8"
    export LOCPATH=$work/locale BB_ENV_PASSTHROUGH_ADDITIONS=LOCPATH
fi
export PATH=$layers/bitbake/bin:$layers/openembedded-core/scripts:$PATH

# Programs of the build host that only a build needs.
missing=
while read -r tool; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done < <(sed -n '/^HOSTTOOLS += " \\/,/^"/p' "$layers/openembedded-core/meta/conf/bitbake.conf" \
    | sed '1d;$d;s/\\//' | tr -s ' ' '\n' | sed '/^$/d')

# Programs that stand in where nothing is compiled.
if [ -n "$deep" ]; then
    real_cargo=$(rustup which cargo 2>/dev/null || command -v cargo) || fail "--deep needs cargo"
    mkdir -p "$work/downloads" "$work/stand-in"
    ln -sf "${CARGO_HOME:-$HOME/.cargo}"/registry/cache/*/*.crate "$work/downloads/"
    cat >"$work/stand-in/cargo" <<END
#!/bin/sh
set -e
manifest= triple= previous=
for word in "\$@"; do
    case "\$previous" in --manifest-path) manifest=\$word ;; --target) triple=\$word ;; esac
    case "\$word" in --manifest-path=*) manifest=\${word#*=} ;; --target=*) triple=\${word#*=} ;; --version) echo "cargo 0 (stand-in)" && exit 0 ;; esac
    previous=\$word
done
HOME=$HOME PATH=$(dirname "$real_cargo"):\$PATH $real_cargo metadata --frozen --all-features --format-version 1 --manifest-path "\$manifest" >"$work/metadata.json"
mkdir -p "\${CARGO_TARGET_DIR:-\$(dirname "\$manifest")/target}/\$triple/release"
for program in orinoco orinoco-engine; do
    printf '#!/bin/sh\n' >"\${CARGO_TARGET_DIR:-\$(dirname "\$manifest")/target}/\$triple/release/\$program"
done
END
    printf '#!/bin/sh\necho "rustc 0 (stand-in)"\n' >"$work/stand-in/rustc"
    # As root it would only note who owns what.
    # shellcheck disable=SC2016 # for the script that is written
    printf '#!/bin/sh\n[ "$1" != -S ] || exit 0\nexec "$@"\n' >"$work/stand-in/pseudo"
    chmod +x "$work/stand-in"/*
    export PATH=$work/stand-in:$PATH
fi

failed=
# bb NAME ARGUMENTS...: bitbake, silent; a warning about our layer counts as an error.
bb() {
    local log=$build/$1.log from=$SECONDS
    shift
    if LC_ALL=en_US.UTF-8 BBPATH=$build BUILDDIR=$build bitbake "$@" >"$log" 2>&1 \
        && ! grep -qE '^ERROR: |^WARNING: .*(meta-orinoco|orinoco)' "$log"; then
        printf 'ok      %s: bitbake %s (%s s)\n' "$board" "$*" $((SECONDS - from))
    else
        failed=1
        printf 'FAILED  %s: bitbake %s\n' "$board" "$*"
        grep -E '^(ERROR|WARNING): |Nothing R?PROVIDES' "$log" | sort -u | head -20
    fi
}

# The recipe's own tasks, in a build folder that is clean; then what it put where.
install_orinoco() {
    local recipe=$here/meta-orinoco/recipes-orinoco/orinoco found image unit path
    recipe=$(compgen -G "$recipe/orinoco_*.bb")
    bb clean -b "$recipe" -c clean
    bb install -b "$recipe" -c install
    image=$(sed -n 's/^D="\(.*\)"/\1/p' "$build/environment.log")
    found=$(cd "$image" 2>/dev/null && find . -type f | wc -l)
    for unit in orinoco.service orinoco-broker.service; do
        [ -n "$(find "$image" -name "$unit" 2>/dev/null)" ] || { echo "FAILED  $board: $unit is not installed" && failed=1; }
    done
    for path in usr/bin/orinoco usr/bin/orinoco-engine etc/orinoco/config.toml usr/lib/sysusers.d/orinoco.conf; do
        [ -f "$image/$path" ] || { echo "FAILED  $board: $path is not installed" && failed=1; }
    done
    echo "        installed: $found files; $(python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["packages"]))' "$work/metadata.json") packages in the lock file, all unpacked"
}

for board; do
    [ -f "$here/meta-orinoco/conf/boards/$board.inc" ] || fail "no board $board in meta-orinoco/conf/boards"
    build=$work/$board
    mkdir -p "$build/conf"
    cd "$build"
    {
        echo "BBPATH = \"$build\""
        echo 'BBFILES ?= ""'
        echo "BBLAYERS = \"$(printf "$layers/%s " "${wanted[@]}")$here/meta-orinoco\""
    } >conf/bblayers.conf
    cat >conf/local.conf <<CONF
DISTRO = "nodistro"
require conf/boards/$board.inc
# Whoever parses may be root, and offline.
INHERIT:remove = "sanity"
BB_NO_NETWORK = "1"
CONNECTIVITY_CHECK_URIS = ""
BB_HASHSERVE = ""
BB_SIGNATURE_HANDLER = "OEBasicHash"
BB_NUMBER_PARSE_THREADS ?= "2"
HOSTTOOLS:remove = "$missing"
CONF
    [ -z "$deep" ] || cat >>conf/local.conf <<CONF
DL_DIR = "$work/downloads"
CARGO:forcevariable = "$work/stand-in/cargo"
HOSTTOOLS_NONFATAL += "cargo rustc"
FAKEROOTCMD = "$work/stand-in/pseudo"
CONF
    bb parse -p
    for recipe in "${recipes[@]}"; do
        bb "graph-$recipe" -g "$recipe"
    done
    bb environment -e orinoco
    # What the image is made for on this board.
    grep -hE '^(MACHINE|CUDA_ARCHITECTURES|CARGO_FEATURES|USE_REDUNDANT_FLASH_LAYOUT|PARTITION_LAYOUT_EXTERNAL|PV)="' \
        "$build/environment.log" | sed 's/^/        /'
    [ -z "$deep" ] || install_orinoco
    grep -q '^CUDA_ARCHITECTURES="87"' "$build/environment.log" || { echo "FAILED  $board: not for sm_87" && failed=1; }
done
[ -z "$failed" ] || exit 1
