"""Makes a repository of updates with python-tuf: tuf_repository.py DIR ed25519|ecdsa|rsa

Root 2 replaces the timestamp's key; targets are at version 2. Beside metadata/ and targets/ lies root.json,
the first root, for the device.
"""

import hashlib
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

where, kind = Path(sys.argv[1]), sys.argv[2]
generate = getattr(CryptoSigner, f"generate_{kind}")
now = datetime.now(timezone.utc).replace(microsecond=0)
issued = {"x-issued": now.isoformat().replace("+00:00", "Z")}
(where / "metadata").mkdir(parents=True)
(where / "targets").mkdir()

keys = {role: generate() for role in ("root", "targets", "snapshot", "timestamp")}
expires = now + timedelta(days=365)
root = Metadata(Root(expires=expires, consistent_snapshot=True, unrecognized_fields=issued))
for role, key in keys.items():
    root.signed.add_key(key.public_key, role)


def write(name, role, *signers):
    """Signs and writes a role; returns its bytes."""
    role.signatures.clear()
    for signer in signers:
        role.sign(signer, append=True)
    written = role.to_bytes()
    (where / "metadata" / name).write_bytes(written)
    return written


def pin(version, written):
    """How one role names another."""
    return MetaFile(version, len(written), {"sha256": hashlib.sha256(written).hexdigest()})


(where / "root.json").write_bytes(write("1.root.json", root, keys["root"]))
replaced, keys["timestamp"] = keys["timestamp"], generate()
root.signed.revoke_key(replaced.public_key.keyid, "timestamp")
root.signed.add_key(keys["timestamp"].public_key, "timestamp")
root.signed.version = 2
write("2.root.json", root, keys["root"])

targets = Metadata(Targets(version=2, expires=expires, unrecognized_fields=issued))
for name, content in (("catalog.json", b'{"schema":1}'), ("small.gguf", b"GGUF" * 1000)):
    target = TargetFile.from_data(name, content, ["sha256"])
    # What an operator may write beside it: nested, and not ASCII.
    target.unrecognized_fields = {"custom": {"note": "für Halle 2 {% if x %}\n", "n_ctx": [4096, 8192]}}
    targets.signed.targets[name] = target
    digest = target.hashes["sha256"]
    (where / "targets" / f"{digest}.{name}").write_bytes(content)
written = write("2.targets.json", targets, keys["targets"])
snapshot = Metadata(Snapshot(version=2, expires=expires, unrecognized_fields=issued))
snapshot.signed.meta["targets.json"] = pin(2, written)
written = write("2.snapshot.json", snapshot, keys["snapshot"])
timestamp = Metadata(Timestamp(version=2, expires=expires, unrecognized_fields=issued))
timestamp.signed.snapshot_meta = pin(2, written)
write("timestamp.json", timestamp, keys["timestamp"])
