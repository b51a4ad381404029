#!/bin/busybox sh
# The first process of the machine that scripts/cross-arm64.sh boots: what it is started for, then off.
# shellcheck shell=dash
export PATH=/bin:/opt HOME=/root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
ip link set lo up
say() { echo "machine: $*"; }

say "$(uname -srm), $(cat /sys/kernel/security/lsm)"
cd /src/engine || poweroff -f
CARGO_MANIFEST_DIR=/src/engine engine-tests --test-threads 1 sandbox::
say "sandbox tests ended with $?"

# The daemon with a broker of its own, and a worker that closes its sandbox.
printf '[node]\nname = "m"\n[model]\nactive = "smollm2"\nn_ctx = 512\n[engine]\nbackend = "cpu"\nn_threads = 1\nload_stall_seconds = 600\nstep_stall_seconds = 600\n[paths]\nstate_dir = "/tmp/state"\nmodels_dir = "/models"\n' >/tmp/config.toml
orinoco run --config /tmp/config.toml >/tmp/log 2>&1 &
answer=$(orinoco ask --host 127.0.0.1 --node m --accept-seconds 600 "Name a river." 2>/tmp/ask.log) || tail -n 30 /tmp/log /tmp/ask.log
say "answer: $(echo "$answer" | tr '\n' ' ')"
for worker in $(pidof orinoco-engine); do
    say "worker: $(grep -E '^(Seccomp|NoNewPrivs):' "/proc/$worker/status" | tr '\n\t' '  ')"
done
grep 'sandbox is not whole' /tmp/log
say "that is all"
poweroff -f
