#!/usr/bin/env bash
# Parses meta-orinoco with the public layers and resolves the image, for each board; nothing is fetched or built.
set -euo pipefail

usage() {
    cat <<'END'
Usage: yocto/parse.sh LAYERS [BOARD...]

LAYERS is a folder with clones of the layers, at the commits and under the names of yocto/kas/base.yml:
bitbake, openembedded-core, meta-openembedded, meta-clang, meta-rust-bin, meta-tegra, and meta-rauc where the
bundle is to be checked, too. `kas checkout yocto/kas/orin-nano.yml` makes such a folder.
BOARD is a name in meta-orinoco/conf/boards; without one, all are checked. No network, no root needed; some
minutes for each board, as each is parsed anew. WORK=DIR keeps what was parsed for the next time.

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
    bb parse -p
    for recipe in "${recipes[@]}"; do
        bb "graph-$recipe" -g "$recipe"
    done
    bb environment -e orinoco
    # What the image is made for on this board.
    grep -hE '^(MACHINE|CUDA_ARCHITECTURES|CARGO_FEATURES|USE_REDUNDANT_FLASH_LAYOUT|PARTITION_LAYOUT_EXTERNAL|PV)="' \
        "$build/environment.log" | sed 's/^/        /'
    grep -q '^CUDA_ARCHITECTURES="87"' "$build/environment.log" || { echo "FAILED  $board: not for sm_87" && failed=1; }
done
[ -z "$failed" ] || exit 1
