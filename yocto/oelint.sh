#!/usr/bin/env bash
# The layer by oelint-adv: errors and warnings, from where it is installed ($PYTHONPATH).
set -euo pipefail
cd "$(dirname "$0")/.."

# homepageping          asks the network
# licenseremotefile     recipes whose only source is this layer have no other licence file
# mispell, .unknown     variables of classes in other layers (cargo_bin, cuda, bundle) and our own
# noncoreoverride       who adds this layer wants Mosquitto and the kernel as Orinoco needs them
suppressed=()
for rule in vars.homepageping var.licenseremotefile vars.mispell vars.mispell.unknown vars.noncoreoverride; do
    suppressed+=(--suppress "oelint.$rule")
done
mapfile -t recipes < <(find yocto/meta-orinoco -name '*.bb' -o -name '*.bbappend' | sort)
[ ${#recipes[@]} -gt 0 ] || { echo "no recipes found" >&2 && exit 1; }
exec python3 -m oelint_adv --release scarthgap --mode all --quiet --relpaths --jobs 1 --hide info \
    "${suppressed[@]}" "${recipes[@]}"
