#!/usr/bin/env bash
# Installs what is missing and runs every check and test of the repository.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/test.sh [--full] [--no-lint] [TEST FILTER...]

Runs, in this order: shell, contract and dependency checks, rustfmt, clippy, every Rust test (with
Mosquitto, the embedded broker, paho-mqtt, MQTT.js and two real models), then the quickstart. Missing
programs come from apt, clients and linters for Python and Node.js go to target/test-deps, models to
models/.

    --full       also what is slow: tests marked #[ignore], ten rounds of 200 prompts under power cuts
                 and broker deaths, a minute of each fuzzer, Node-RED 5.0, Home Assistant, a whole
                 release, the device code for Orin by nvcc (half an hour), a build for aarch64 that runs under
                 qemu, and cargo-deny is installed when missing
    --no-lint    tests only
    FILTER       handed to cargo test; then nothing but these tests runs

Examples:
    scripts/test.sh
    scripts/test.sh cancel_frees
    ORINOCO_YOCTO_LAYERS=~/layers scripts/test.sh      # also parses the Yocto layer (yocto/parse.sh)
END
}

full='' lint=1 filters=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --full) full=1 ;;
        --no-lint) lint='' ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *) filters+=("$1") ;;
    esac
    shift
done
cd "$repo_dir"
deps=$repo_dir/target/test-deps
started_s=$SECONDS

# timed NAME COMMAND...: runs it, and says how long it took.
timed() {
    local name=$1 from=$SECONDS
    shift
    step "$name"
    "$@" || die "failed: $name"
    say "    ($name: $((SECONDS - from)) s)"
}

# Ubuntu's package only asks for a snap, which a container has not.
has_chromium() { have chromium || have chromium-browser || have google-chrome || grep -q '^ID=ubuntu' /etc/os-release; }

export PATH="$PATH:/usr/sbin" # Debian puts mosquitto there
want_build_tools
want binutils "a test reads which libraries the daemon needs" have readelf
want mosquitto "the other broker; only our tests start it, on free ports" have mosquitto
want mosquitto-clients "the issue's own commands are tested" have mosquitto_pub
want libmosquitto-dev "the examples in C and for the ESP32 are built and run" test -e /usr/include/mosquitto.h
want nodejs "runs MQTT.js, the client inside Node-RED, and the judges of the published contract" have node
want npm "fetches them" have npm
want chromium "the flows of node-red/ are run in it; not on Ubuntu, whose package is an empty one" has_chromium
want mmdebstrap "makes a clean Debian, in which the packages are installed and removed" have mmdebstrap
want dpkg-dev "says which libraries a package needs" have dpkg-shlibdeps
want lintian "Debian's judge of packages" have lintian
want systemd "the units are verified and rated; 3 MB, and nothing of it is started" have systemd-analyze
[ -z "$lint" ] || want shellcheck "checks these scripts" have shellcheck
install_wanted
need_rust
detect_board
choose_build cpu # the tests run on any machine; a GPU has its own
apply_build

# Clients for the interoperability tests, pinned, in a folder of their own: no venv and no global state.
# The stamp holds what was installed from, so a changed pin installs anew.
client_deps() {
    local python=$deps/python node_dir=$deps/node stamp=$deps/stamp wanted node=node
    wanted=$(cat tests/interop/requirements.txt yocto/requirements.txt tests/interop/package-lock.json | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$deps" && mkdir -p "$node_dir"
        # --target leaves the system's Python alone, also where pip calls it externally managed (PEP 668).
        PIP_ROOT_USER_ACTION=ignore python3 -m pip --disable-pip-version-check -q install --require-hashes --no-deps \
            --target "$python" -r tests/interop/requirements.txt -r yocto/requirements.txt >&2 || return 1
        cp tests/interop/package.json tests/interop/package-lock.json "$node_dir/"
        npm --prefix "$node_dir" ci --loglevel=error --no-audit --no-fund >&2 || return 1
        # Ubuntu 22.04 has Node 12, and MQTT.js needs 16.
        if [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 16 ]; then
            local arch=x64
            [ "$(uname -m)" != aarch64 ] || arch=arm64
            npm --prefix "$deps/node20" install --loglevel=error --no-audit --no-fund "node-linux-$arch@20.5.1" >&2 || return 1
        fi
        printf '%s\n' "$wanted" >"$stamp"
    fi
    for node in "$deps"/node20/node_modules/node-linux-*/bin; do
        [ ! -x "$node/node" ] || export PATH="$node:$PATH"
    done
    export PYTHONPATH=$python NODE_PATH=$node_dir/node_modules
}

lint_all() {
    shellcheck -x scripts/*.sh systemd/deb/*.p* benches/*.sh tests/*.sh tests/deb/systemctl tests/interop/*.sh examples/clients/*.sh yocto/*.sh .ci/run || return 1
    bash tests/scripts_test.sh || return 1
    python3 scripts/make-pictures.py --check || return 1
    cargo fmt --all -- --check || return 1
    cargo clippy --release --locked --workspace --all-targets -- -D warnings || return 1
    # The fuzz targets have a lock file of their own, which a new dependency of ours makes stale.
    cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null || return 1
}

# The AsyncAPI document by a linter, where a hint counts like an error, and the JSON Schemas by a
# validator; we wrote neither.
lint_contract() {
    node tests/interop/schemas.js >&2 || return 1
    "$deps/node/node_modules/.bin/spectral" lint --fail-severity hint --ruleset tests/interop/spectral.yaml \
        docs/contract/asyncapi.json >&2
}

# Advisories need a database from the network; without it the rest is still checked.
deny_all() {
    if ! cargo deny --version >/dev/null 2>&1; then
        if [ -z "$full" ]; then
            say "skipped: cargo-deny is not installed (scripts/test.sh --full installs it)"
            return 0
        fi
        cargo install --locked cargo-deny || return 1
    fi
    cargo deny --all-features check bans licenses sources || return 1
    if cargo deny fetch >/dev/null 2>&1; then
        cargo deny --all-features check --disable-fetch advisories || return 1
    else
        say "skipped: advisories, since the RUSTSEC database could not be fetched"
    fi
}

# Node-RED with its test tools, pinned, in a folder of its own: node_red_deps NAME FOLDER
node_red_deps() {
    local place=$deps/$1 wanted
    wanted=$(sha256sum <"$2/package-lock.json")
    [ "$(cat "$place/stamp" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$place" && mkdir -p "$place"
    cp "$2/package.json" "$2/package-lock.json" "$place/"
    npm --prefix "$place" ci --loglevel=error --no-audit --no-fund >&2 || return 1
    printf '%s\n' "$wanted" >"$place/stamp"
}

# The nodes in a real runtime over Mosquitto, then the package as Node-RED's own scorecard judges it.
node_red_nodes() {
    local modules=$deps/node-red-4/node_modules
    (cd node-red && NODE_PATH=$modules "$modules/.bin/mocha" --timeout 60000 --exit 'test/*_spec.js') >&2 || return 1
    # It ends with 0 whatever it found.
    local verdict
    verdict=$(NODE_PATH=$modules NODE_OPTIONS="--require $repo_dir/node-red/test/offline.js" \
        "$modules/.bin/node-red-dev" validate -p node-red) || return 1
    say "$verdict"
    ! grep -qE '❌|⚠' <<<"$verdict" && grep -q 'Examples found for all nodes' <<<"$verdict"
}

# Each example in the editor, in headless Chromium, against the real daemon and model.
node_red_flows() {
    if ! have chromium && ! have chromium-browser && ! have google-chrome; then
        say "skipped: flows in a browser, since there is no Chromium here"
        return 0
    fi
    NODE_PATH=$deps/node-red-4/node_modules node node-red/test/e2e/run.js "$@" >&2
}

# Node-RED 5 wants Node.js 22, which npm has as a package.
node_red_5() {
    local arch=x64 place=$deps/node-red-5
    [ "$(uname -m)" != aarch64 ] || arch=arm64
    node_red_deps node-red-5 node-red/test/node-red-5 || return 1
    npm --prefix "$deps/node22" install --loglevel=error --no-audit --no-fund "node-linux-$arch@22.23.3" >&2 || return 1
    node_red_flows "$place/node_modules" --node "$deps/node22/node_modules/node-linux-$arch/bin/node"
}

# The demo with the Node-RED that is here already.
demo_starts() { tests/demo_test.sh "$deps/node-red-4/node_modules" >&2; }

# The discovery payload before Home Assistant's own schemas, then its core beside a real node, with the recipes of
# the docs. One release, which wants Python 3.13.
home_assistant() {
    local place=$deps/home-assistant python=python3.13
    # The shims of pyenv are there for versions that are not chosen.
    if ! "$python" --version >/dev/null 2>&1; then
        python=$(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.13.*/bin/python3" | tail -n 1) || true
    fi
    if [ -z "$python" ]; then
        say "skipped: Home Assistant, its schemas and its core with the docs' recipes, since there is no Python 3.13"
        return 0
    fi
    if [ ! -x "$place/bin/python3" ]; then
        "$python" -m venv "$place" || return 1
        "$place/bin/pip" --disable-pip-version-check -q install homeassistant==2025.4.4 paho-mqtt==2.1.0 >&2 || {
            rm -rf "$place"
            say "skipped: Home Assistant, its schemas and its core with the docs' recipes, since its package could not be installed"
            return 0
        }
    fi
    env -u PYTHONPATH "$place/bin/python3" tests/interop/home_assistant.py >&2 || return 1
    env -u PYTHONPATH "$place/bin/python3" tests/interop/home_assistant_core.py >&2
}

# The Yocto layer: what needs no bitbake, then, where somebody has the public layers, bitbake's own view.
lint_yocto() {
    yocto/check.py || return 1
    grep -rlZ '^#!/bin/sh' yocto/meta-orinoco | xargs -0 shellcheck || return 1
    bash yocto/scripts_test.sh >&2 || return 1
    yocto/oelint.sh >&2 || return 1
    if [ -n "${ORINOCO_YOCTO_LAYERS:-}" ]; then
        yocto/parse.sh "$ORINOCO_YOCTO_LAYERS" >&2 || return 1
    else
        say "skipped: parsing the Yocto layer, as ORINOCO_YOCTO_LAYERS names no folder of layers (yocto/parse.sh)"
    fi
}

# The bill of materials before CycloneDX's own schema.
bill_validates() {
    local place=$deps/cyclonedx
    if [ ! -e "$place.done" ]; then
        rm -rf "$place"
        PIP_ROOT_USER_ACTION=ignore python3 -m pip --disable-pip-version-check -q install --target "$place" \
            'cyclonedx-python-lib[json-validation]==11.12.0' >&2 || {
            say "skipped: CycloneDX's schema, since its package could not be installed"
            return 0
        }
        touch "$place.done"
    fi
    PYTHONPATH=$place python3 - "$1" <<'END'
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
judge, bill = JsonStrictValidator(SchemaVersion.V1_5), pathlib.Path(sys.argv[1]).read_text()
# It finds a mistake where there is one.
assert judge.validate_str(bill.replace('"required"', '"perhaps"', 1)) is not None
sys.exit(str(found) if (found := judge.validate_str(bill)) else 0)
END
}

# A whole release, of the programs that are there; without npm's and cargo's own networks it says what it skipped.
release_folder() {
    local out
    out=$(mktemp -d) || return 1
    scripts/release.sh --no-build --dirty --out "$out" || return 1
    bill_validates "$out"/*.cdx.json || return 1
    (cd "$out" && sha256sum --quiet --strict -c SHA256SUMS && [ "$(wc -l <SHA256SUMS)" = "$(($(find . -type f | wc -l) - 1))" ]) || return 1
    rm -rf "$out"
}

# Daemon and worker for aarch64: answers, unit tests, and the sandbox on a kernel of aarch64, all under qemu.
aarch64() {
    local found=0
    if [ "$(uname -m)" != x86_64 ] || [ "$(id -u)" != 0 ]; then
        say "skipped: aarch64 under qemu, as it is built by root on an x86-64 machine"
        return 0
    fi
    scripts/cross-arm64.sh || found=$?
    [ "$found" = 77 ] || return "$found"
    say "skipped: aarch64 under qemu, since its packages are not to be had"
}

# The Debian packages: Debian's linter, then their whole life in a clean root.
debian_packages() {
    export PATH="$PATH:$deps/tools/bin"
    if ! cargo deb --version >/dev/null 2>&1; then
        cargo install -q --locked --no-default-features --root "$deps/tools" cargo-deb@3.8.0 || return 1
    fi
    scripts/deb.sh --no-build --fast || return 1
    lintian --allow-root --fail-on error --suppress-tags \
        initial-upload-closes-no-bugs,no-manual-page,wrong-name-for-upstream-changelog,description-synopsis-starts-with-article \
        target/packages/*.deb >&2 || return 1
    python3 tests/deb/lifecycle.py >&2
}

# What is linked into the programs names its licences; the bill of materials and the version are true everywhere.
supply_chain() {
    python3 scripts/licences.py >target/LICENCES.txt || return 1
    python3 tests/supply_chain.py >&2
}

# What the models wrote under schemas, before the crate jsonschema.
second_judge() {
    cargo run --release --locked --manifest-path tests/judge/Cargo.toml --target-dir target/judge <"$ORINOCO_ANSWERS" >&2
}

quickstart_answers() {
    local answer
    answer=$(scripts/quickstart.sh --cpu --once "Name three rivers.") || return 1
    say "$answer"
    [ -n "$answer" ]
}

if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    have rustup || die "rustfmt and clippy are missing, and there is no rustup to add them"
    rustup component add rustfmt clippy >&2
fi

timed "models" scripts/fetch-models.sh
timed "MQTT clients, judges of the contract" client_deps
timed "chat templates of other models" scripts/fetch-templates.sh
ignored=()
# ORINOCO_FULL: tests with rounds run all of them (tests/power_cut.rs).
if [ -n "$full" ]; then
    ignored=(--include-ignored)
    export ORINOCO_FULL=1 ORINOCO_ANSWERS=$repo_dir/target/answers.jsonl
    rm -f "$ORINOCO_ANSWERS"
fi
if [ ${#filters[@]} -gt 0 ]; then
    timed "tests" cargo test --release --locked --workspace -- "${ignored[@]}" "${filters[@]}"
    exit 0
fi
if [ -n "$lint" ]; then
    timed "formats, lints, scripts" lint_all
    timed "published contract" lint_contract
    timed "dependencies" deny_all
    timed "licences, bill of materials, version" supply_chain
    timed "Yocto layer" lint_yocto
fi
# The tests start the programs, so they come first; --workspace builds what the tests link as well.
timed "build" build_orinoco
timed "tests" cargo test --release --locked --workspace --no-fail-fast -- "${ignored[@]}"
timed "Debian packages" debian_packages
[ -z "$full" ] || timed "a release" release_folder
[ -z "$full" ] || timed "device code for Orin" scripts/cuda-sm87.sh
[ -z "$full" ] || timed "answers under schemas, by a second judge" second_judge
[ -z "$full" ] || timed "aarch64 under qemu" aarch64
timed "Mosquitto with the access rules as shipped" python3 tests/interop/mosquitto_acl.py
timed "Node-RED and its test tools" node_red_deps node-red-4 node-red/test
timed "Node-RED nodes" node_red_nodes
timed "flows in a browser, Node-RED 4.1" node_red_flows "$deps/node-red-4/node_modules"
[ -z "$full" ] || timed "flows in a browser, Node-RED 5.0" node_red_5
[ -z "$full" ] || timed "Home Assistant" home_assistant
timed "quickstart" quickstart_answers
timed "demo of Node-RED" demo_starts
[ -z "$full" ] || timed "fuzzing, a minute for each target" scripts/fuzz.sh
say "
everything passed in $((SECONDS - started_s)) s"
