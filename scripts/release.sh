#!/usr/bin/env bash
# Makes a release: packages, sources, bill of materials and licences in one folder, with checksums.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/release.sh [--out DIR] [--revision N] [--no-build] [--cpu] [--dirty]

Makes everything that is handed out, from a clean checkout, for this machine's architecture and GPU, in DIR
(default: target/release-VERSION):

    orinoco_*.deb, orinoco-mosquitto_*.deb   scripts/deb.sh; built by cargo-auditable, so that the programs
                                             themselves say which crates are in them
    orinoco-VERSION.tar.gz                   the sources, with yocto/, as the tag has them
    orinoco-node-red-orinoco-*.tgz           the Node-RED palette
    orinoco-VERSION.cdx.json                 bill of materials, CycloneDX (scripts/sbom.py)
    THIRD-PARTY.txt                          what others wrote, with all licences
    CHANGELOG.md, SECURITY.md                as of this version
    SHA256SUMS                               of all of these

The version is that of Cargo.toml; tests/supply_chain.py says where else it stands. Before it makes anything it
checks licences and advisories (cargo deny); without a network the advisories are skipped, and it says so.

    --no-build    pack target/release as it is; for tests, the programs are then not auditable
    --dirty       although something is not committed; the sources are those of the last commit
    --cpu         for the processor, although there is a GPU
END
}

out='' revision=1 build=1 dirty='' deb_arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --out) out=${2:?--out needs a folder} && shift ;;
        --revision) revision=${2:?--revision needs a number} && shift ;;
        --no-build) build='' && deb_arguments+=(--no-build --fast) ;;
        --cpu) deb_arguments+=(--cpu) ;;
        --dirty) dirty=1 ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done
cd "$repo_dir"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=$(realpath -m "${out:-target/release-$version}")
[ -n "$dirty" ] || [ -z "$(git status --porcelain)" ] \
    || die "something is not committed; a release is a commit. Commit it, or add --dirty for a trial"
[ ! -e "$out" ] || [ -z "$(ls -A "$out")" ] || die "$out is not empty; a release is made from nothing"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
need_rust

step "versions, bill of materials"
python3 tests/supply_chain.py >&2 || die "what is said of the release is not true; see above"

step "licences and advisories"
if ! cargo deny --version >/dev/null 2>&1; then
    [ -z "$build" ] || die "cargo-deny is missing:  cargo install --locked cargo-deny"
    say "skipped: licences and advisories, since cargo-deny is not installed"
else
    cargo deny --all-features check bans licenses sources >&2 || die "cargo deny: see above"
    if cargo deny fetch >/dev/null 2>&1; then
        cargo deny --all-features check --disable-fetch advisories >&2 || die "an advisory stands against a crate"
    else
        say "skipped: advisories, since the RUSTSEC database could not be fetched. Run  cargo deny check advisories  elsewhere"
    fi
fi

mkdir -p "$out"
step "packages"
if [ -n "$build" ]; then
    cargo auditable --version >/dev/null 2>&1 || die "cargo-auditable is missing:  cargo install --locked cargo-auditable"
    export ORINOCO_CARGO_BUILD="auditable build"
fi
scripts/deb.sh "${deb_arguments[@]}" --revision "$revision" --out "$out" >&2
# What JetPack 6 (Ubuntu 22.04) has; a newer system than Debian 12 would link against more.
glibc_max=2.35
wanted=$(dpkg-deb -f "$(compgen -G "$out/orinoco_*.deb")" Depends | sed -n 's/.*libc6 (>= \([0-9.]*\)).*/\1/p')
[ -n "$wanted" ] || die "the package names no version of libc6"
newer_or_same "$glibc_max" "$wanted" \
    || die "the package wants glibc $wanted and JetPack 6 has $glibc_max: make releases on Debian 12 or Ubuntu 22.04"
step "sources, palette, bill of materials"
git archive --format=tar --prefix="orinoco-$version/" HEAD | gzip -9n >"$out/orinoco-$version.tar.gz"
if have npm; then
    (cd node-red && npm pack --silent --pack-destination "$out" >&2)
else
    say "skipped: the Node-RED palette, since there is no npm"
fi
sbom=()
detect_board
choose_build "$([[ " ${deb_arguments[*]} " != *" --cpu "* ]] || echo cpu)"
if [ -n "$cuda_dir" ] && [ -n "$build" ]; then
    sbom=(--cuda "$("$cuda_dir/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')")
fi
bill=$out/orinoco-$version.cdx.json
python3 scripts/sbom.py --target "$(rustc -vV | sed -n 's/^host: //p')" "${sbom[@]}" >"$bill"
if [ -n "$build" ]; then
    # As they are handed out: packed and stripped.
    unpacked=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$unpacked'" EXIT
    dpkg-deb -x "$(compgen -G "$out/orinoco_*.deb")" "$unpacked"
    scripts/auditable.py "$bill" "$unpacked/usr/bin/orinoco" "$unpacked/usr/bin/orinoco-engine" >&2 \
        || die "the programs and the bill of materials do not say the same"
fi
gunzip -c target/deb/THIRD-PARTY.txt.gz >"$out/THIRD-PARTY.txt"
cp CHANGELOG.md SECURITY.md "$out/"

step "checksums"
sums=$(cd "$out" && find . -maxdepth 1 -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum)
printf '%s\n' "$sums" >"$out/SHA256SUMS"
(cd "$out" && sha256sum --quiet --strict -c SHA256SUMS) || die "a checksum does not hold"
say "$sums"
say "
$out: $(git rev-parse --short HEAD), version $version. Sign SHA256SUMS with the project's key before it is handed out."
