#!/usr/bin/env bash
# Tests of the layer's shell scripts: a made-up nvbootctrl, the real mosquitto_passwd, temporary directories.
set -uo pipefail
cd "$(dirname "$0")/meta-orinoco" || exit 1
bootchain=$PWD/dynamic-layers/rauc/recipes-core/rauc/orinoco-rauc/orinoco-bootchain
account=$PWD/recipes-orinoco/appliance/orinoco-mosquitto/orinoco-mosquitto-account
data=$PWD/recipes-orinoco/appliance/orinoco-appliance/orinoco-data
size=$PWD/recipes-bsp/tegra-binaries/tegra-storage-layout/set-data-size
PATH=$PATH:/usr/sbin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# is NAME EXPECTED FOUND
is() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED %s: expected "%s", found "%s"\n' "$1" "$2" "$3"
    fi
}

# slots CURRENT ACTIVE STATUS_A STATUS_B: what nvbootctrl will say; what it is told goes to $work/calls.
slots() {
    mkdir -p "$work/bin"
    : >"$work/calls"
    cat >"$work/bin/nvbootctrl" <<NVBOOTCTRL
#!/bin/sh
[ "\$*" = dump-slots-info ] || { echo "\$*" >>"$work/calls"; exit 0; }
cat <<SLOTS
Current version: 36.5.0
Capsule update status: 0
Current bootloader slot: $1
Active bootloader slot: $2
num_slots: 2
slot: 0,             status: $3
slot: 1,             status: $4
SLOTS
NVBOOTCTRL
    chmod +x "$work/bin/nvbootctrl"
}
chain() { PATH=$work/bin:$PATH "$bootchain" "$@" 2>&1; }

slots A B normal unbootable
is "the running slot" A "$(chain get-current)"
is "the slot that boots next" B "$(chain get-primary)"
is "a slot that boots is good" good "$(chain get-state A)"
is "a slot that cannot boot is bad" bad "$(chain get-state B)"
chain set-primary B
is "the second slot is chain 1" "set-active-boot-slot 1" "$(cat "$work/calls")"
slots A A normal normal
chain set-state A good
is "the running system is confirmed" verify "$(cat "$work/calls")"
slots A A normal normal
chain set-state B good
is "the other one is not touched" "" "$(cat "$work/calls")"
chain set-state B bad
is "a bad slot is not booted" "set-slot-as-unbootable 1" "$(cat "$work/calls")"
is "a wrong slot" 'orinoco-bootchain: slot "C": expected A or B' "$(chain set-primary C)"
chain set-primary C >/dev/null
is "a wrong slot is an error" 1 $?
chain reboot >/dev/null
is "an unknown order is an error" 1 $?
printf '#!/bin/sh\nexit 3\n' >"$work/bin/nvbootctrl"
chain get-primary >/dev/null
is "nvbootctrl's failure is one here" 1 $?
chain set-primary A >/dev/null
is "also where it is told something" 1 $?

"$data" "$work/data"
is "state has its directory" yes "$([ -d "$work/data/var/lib/orinoco" ] && echo yes)"
is "overlays have theirs" yes "$([ -d "$work/data/overlay/work/etc/mosquitto" ] && echo yes)"
"$data" "$work/data"
is "a second boot finds them" 0 $?

layout=$work/external-flash.xml
cat >"$layout" <<'XML'
<partition name="APP" type="data">
    <size> 8589934592 </size>
</partition>
<partition name="UDA" type="data">
    <allocation_policy> sequential </allocation_policy>
    <size> 419430400 </size>
</partition>
<partition name="reserved" type="data">
    <size> 502792192 </size>
</partition>
XML
printf '<partition name="BCT">\n<size> 1 </size>\n</partition>\n' >"$work/internal-flash.xml"
sh "$size" 34359738368 "$work"/*-flash.xml
is "the data partition alone has another size" "8589934592 34359738368 502792192" \
    "$(grep -o '<size> [0-9]*' "$layout" | cut -d' ' -f2 | paste -sd' ')"
is "a layout without it stays" 1 "$(grep -c '<size> 1 </size>' "$work/internal-flash.xml")"
sh "$size" 1 "$work/internal-flash.xml" 2>/dev/null
is "no data partition at all is an error" 1 $?
sh "$size" 32G "$layout" 2>/dev/null
is "a size that is no number is an error" 1 $?

if command -v mosquitto_passwd >/dev/null; then
    printf 'fjords and fells\n' >"$work/password"
    "$account" "$work/password" "$work/accounts"
    is "the daemon has an account" "daemon:\$" "$(head -c 8 "$work/accounts")"
    is "its password is hashed" 0 "$(grep -c fjords "$work/accounts")"
    is "others cannot read it" 600 "$(stat -c %a "$work/accounts")"
    : >"$work/password"
    "$account" "$work/password" "$work/none" 2>/dev/null
    is "no password is an error" 1 $?
    is "and leaves no accounts" no "$([ -e "$work/none" ] && echo yes || echo no)"
else
    echo "skipped: Mosquitto's account, as mosquitto_passwd is not installed"
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
