#!/usr/bin/env bash
# Makes the Debian packages orinoco and orinoco-mosquitto.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/deb.sh [--no-build] [--out DIR] [--revision N] [--cpu] [--fast] [--target aarch64-unknown-linux-gnu]

Builds Orinoco for this machine's GPU or processor, and packs it with cargo-deb into DIR (default: target/packages).
For Debian 12, Ubuntu 22.04 (JetPack 6) and newer; wants Rust, cargo-deb and llama.cpp's build tools.

    --no-build        pack what is in target/release, or target/TARGET/release, as it is
    --revision N      the last part of the version (default: 1)
    --fast            larger files, sooner made
    --cpu             for the processor, although there is a GPU
    --target TRIPLE   for another architecture, with --no-build

A package is for any board of its architecture, so a build here is not tuned to this machine's processor.
END
}

build=1 out=$repo_dir/target/packages revision=1 cpu='' fast='' target=''
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --no-build) build='' ;;
        --out) out=${2:?--out needs a folder} && shift ;;
        --revision) revision=${2:?--revision needs a number} && shift ;;
        --cpu) cpu=cpu ;;
        --fast) fast=--fast ;;
        --target) target=${2:?--target needs a triple} && shift ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done
[ -z "$target" ] || [ -z "$build" ] || die "--target goes with --no-build"
cargo deb --version >/dev/null 2>&1 || die "cargo-deb is missing:  cargo install --locked --no-default-features cargo-deb"
have dpkg-shlibdeps || die "dpkg-shlibdeps is missing, which says what libraries a package needs:  apt-get install dpkg-dev"
cd "$repo_dir"
# Not target/debian: cargo-deb works there, and empties it.
mkdir -p "$out" target/deb

if [ -n "$build" ]; then
    detect_board
    choose_build "$cpu"
    apply_build
    say "$board_name: building for $build_note"
    # Ours wins over .cargo/config.toml, which tunes a build to the machine that makes it.
    export RUSTFLAGS='' CARGO_TARGET_DIR=$repo_dir/target/deb/build
    build_orinoco
fi

# Kept from the time of the commit, so that the same sources make the same package.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
cat >target/deb/changelog <<END
orinoco ($version-$revision) stable; urgency=medium

  * See /usr/share/doc/orinoco/CHANGELOG.md.

 -- The Orinoco authors <orinoco@users.noreply.github.com>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
triple=${target:-$(rustc -vV | sed -n 's/^host: //p')}
python3 scripts/licences.py --texts --target "$triple" | gzip -9n >target/deb/THIRD-PARTY.txt.gz
for kind in sysusers tmpfiles; do
    install -D -m 0644 "systemd/orinoco-$kind.conf" "target/deb/$kind.d/orinoco.conf"
done

for variant in '' mosquitto; do
    arguments=(--no-build --strip --locked --deb-revision "$revision" --output "$out")
    [ -z "$fast" ] || arguments+=("$fast")
    [ -z "$variant" ] || arguments+=(--variant "$variant")
    [ -z "$target" ] || arguments+=(--target "$target")
    cargo deb -q "${arguments[@]}" || die "cargo-deb could not pack orinoco${variant:+-$variant}"
done
