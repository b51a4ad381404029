//! What may not be written, and what may not be read, row by row.

use crate::arena::{Arena, USERS, asking, message, try_to};
use orinoco::link::Publish;

/// Somebody publishes where it may not.
struct Write {
    who: &'static str,
    topic: &'static str,
    retain: bool,
}

const fn write(who: &'static str, topic: &'static str) -> Write {
    Write {
        who,
        topic,
        retain: false,
    }
}

const fn retain(who: &'static str, topic: &'static str) -> Write {
    Write {
        who,
        topic,
        retain: true,
    }
}

const WRITES: &[Write] = &[
    // Asking, and calling off, in another's name.
    write("alice", "orinoco/v1/n1/req/bob/chat/a1"),
    write("alice", "orinoco/v1/n1/req/bob/cancel/a1"),
    write("alice", "orinoco/v1/pool/p1/req/bob/chat/a1"),
    write("alice", "orinoco/v1/pool/req/alice/chat/a1"),
    write("alice", "orinoco/v1/n1/req/local/chat/a1"),
    write("alice", "orinoco/v1/n1/req/daemon/chat/a1"),
    write("alice", "orinoco/v1/n1/req/%u/chat/a1"),
    write("hall", "orinoco/v1/n1/req/hall/chat/a1"),
    write("hall", "orinoco/v1/pool/p1/req/hall/chat/a1"),
    // Forging answers: another's, the own, and those of users whose name is a word of the contract.
    write("alice", "orinoco/v1/resp/bob/a1"),
    write("alice", "orinoco/v1/resp/alice/a1"),
    write("alice", "orinoco/v1/resp/req/alice/a1"),
    write("alice", "orinoco/v1/resp/tele/a1"),
    write("boss", "orinoco/v1/resp/bob/a1"),
    write("boss", "orinoco/v1/resp/cmd/a1"),
    write("boss", "orinoco/v1/resp/set/a1"),
    write("hall", "orinoco/v1/resp/bob/a1"),
    // Passing for a node.
    write("alice", "orinoco/v1/n1/status"),
    retain("alice", "orinoco/v1/n1/status"),
    retain("alice", "orinoco/v1/n1/info"),
    retain("alice", "orinoco/v1/n1/models"),
    write("alice", "orinoco/v1/n1/tele/gpu"),
    write("alice", "orinoco/v1/n1/evt/pressure"),
    write("alice", "orinoco/v1/n1/ota/state"),
    write("boss", "orinoco/v1/n1/status"),
    write("alice", "homeassistant/device/n1/config"),
    retain("alice", "homeassistant/device/n1/config"),
    write("boss", "homeassistant/device/n1/config"),
    // Giving orders.
    write("alice", "orinoco/v1/n1/cmd/restart/a1"),
    retain("alice", "orinoco/v1/n1/cmd/restart/a1"),
    write("alice", "orinoco/v1/n1/set/model"),
    write("alice", "orinoco/v1/fleet/all/desired"),
    retain("alice", "orinoco/v1/fleet/all/desired"),
    write("alice", "orinoco/v1/fleet/req/alice/desired"),
    write("alice", "homeassistant/status"),
    write("hall", "orinoco/v1/n1/cmd/restart/a1"),
    write("hall", "orinoco/v1/n1/set/model"),
    write("hall", "orinoco/v1/fleet/all/desired"),
    write("hall", "homeassistant/status"),
    // Elsewhere.
    write("alice", "orinoco/v2/n1/req/alice/chat/a1"),
    write("alice", "elsewhere"),
];

/// Somebody subscribes to what it may not read; then `writer` publishes it.
struct Read {
    who: &'static str,
    filter: &'static str,
    writer: &'static str,
    topic: &'static str,
}

const fn read(
    who: &'static str,
    filter: &'static str,
    writer: &'static str,
    topic: &'static str,
) -> Read {
    Read {
        who,
        filter,
        writer,
        topic,
    }
}

#[rustfmt::skip]
const READS: &[Read] = &[
    // Another's answers, by every way in.
    read("alice", "orinoco/v1/resp/bob/#", "daemon", "orinoco/v1/resp/bob/s1"),
    read("alice", "orinoco/v1/resp/bob/s2", "daemon", "orinoco/v1/resp/bob/s2"),
    read("alice", "orinoco/v1/resp/+/s3", "daemon", "orinoco/v1/resp/bob/s3"),
    read("alice", "orinoco/v1/resp/#", "daemon", "orinoco/v1/resp/bob/s4"),
    read("alice", "orinoco/v1/+/bob/+", "daemon", "orinoco/v1/resp/bob/s5"),
    read("alice", "orinoco/v1/#", "daemon", "orinoco/v1/resp/bob/s6"),
    read("alice", "#", "daemon", "orinoco/v1/resp/bob/s7"),
    read("alice", "+/+/+/+/+", "daemon", "orinoco/v1/resp/bob/s8"),
    read("alice", "$share/g/orinoco/v1/resp/bob/#", "daemon", "orinoco/v1/resp/bob/s9"),
    read("boss", "orinoco/v1/resp/#", "daemon", "orinoco/v1/resp/bob/s10"),
    read("hall", "orinoco/v1/resp/#", "daemon", "orinoco/v1/resp/bob/s11"),
    read("alice", "orinoco/v1/resp/bob/+", "daemon", "orinoco/v1/resp/bob/s12"),
    read("alice", "+/v1/resp/bob/#", "daemon", "orinoco/v1/resp/bob/s13"),
    // Telemetry of all nodes is a pattern that the answers to somebody named tele would match.
    read("alice", "orinoco/v1/+/tele/#", "daemon", "orinoco/v1/resp/tele/s1"),
    read("hall", "orinoco/v1/+/tele/#", "daemon", "orinoco/v1/resp/tele/s2"),
    read("hall", "orinoco/v1/+/cmd/#", "daemon", "orinoco/v1/resp/cmd/s1"),
    // Another's prompts.
    read("alice", "orinoco/v1/n1/req/#", "bob", "orinoco/v1/n1/req/bob/tokenize/s1"),
    read("alice", "orinoco/v1/+/req/bob/#", "bob", "orinoco/v1/n1/req/bob/tokenize/s2"),
    read("alice", "$share/p/orinoco/v1/n1/req/#", "bob", "orinoco/v1/n1/req/bob/tokenize/s3"),
    read("alice", "orinoco/v1/pool/p1/req/#", "bob", "orinoco/v1/pool/p1/req/bob/tokenize/s4"),
    read("boss", "orinoco/v1/n1/req/#", "bob", "orinoco/v1/n1/req/bob/tokenize/s5"),
    read("hall", "orinoco/v1/+/req/#", "bob", "orinoco/v1/n1/req/bob/tokenize/s6"),
    // Orders.
    read("alice", "orinoco/v1/+/cmd/#", "boss", "orinoco/v1/n1/cmd/restart/s1"),
    read("alice", "orinoco/v1/fleet/#", "boss", "orinoco/v1/fleet/all/desired"),
    read("alice", "orinoco/v1/+/set/#", "boss", "orinoco/v1/n1/set/model"),
    read("hall", "orinoco/v1/+/set/#", "boss", "orinoco/v1/n1/set/model"),
    read("alice", "orinoco/v1/n1/ota/#", "daemon", "orinoco/v1/n1/ota/s1"),
    // Home Assistant's.
    read("alice", "homeassistant/#", "boss", "homeassistant/status"),
    read("alice", "homeassistant/device/+/config", "daemon", "homeassistant/device/n1/config"),
    read("hall", "homeassistant/#", "daemon", "homeassistant/device/n1/config"),
];

/// Nobody gets what one may not write: neither the daemon's account, which reads all below the root, nor an
/// operator, who reads Home Assistant's topics, nor a victim.
pub(crate) async fn what_may_not_be_written_reaches_nobody(arena: &Arena) {
    let (node, node_seen) = arena
        .join(
            "daemon",
            "orinoco-daemon-spy",
            &["orinoco/v1/#", "homeassistant/status"],
        )
        .await;
    let (_boss, boss_seen) = arena.join("boss", "boss-reads", &["homeassistant/#"]).await;
    let (_bob, bob_seen) = arena
        .join("bob", "bob-reads", &["orinoco/v1/resp/bob/#"])
        .await;
    let mut observers = vec![
        ("node", node_seen.clone()),
        ("boss", boss_seen.clone()),
        ("bob", bob_seen.clone()),
    ];
    for name in arena.misnamed() {
        let filter = format!("orinoco/v1/resp/{name}/#");
        observers.push((name, arena.join(name, name, &[&filter]).await.1));
    }

    let mut links = Vec::new();
    for (who, _) in USERS {
        links.push((who, arena.join(who, &format!("{who}-attacks"), &[]).await));
    }
    for Write { who, topic, retain } in WRITES {
        let (_, (link, seen)) = links.iter().find(|(name, _)| name == who).unwrap();
        let attack = Publish {
            retain: *retain,
            ..message(topic, &format!("attack of {who} on {topic}"))
        };
        try_to(link, seen, attack).await;
    }

    // After all that: honest messages on every way an attack could have come.
    for who in ["alice", "boss"] {
        let (_, (link, seen)) = links.iter().find(|(name, _)| *name == who).unwrap();
        try_to(
            link,
            seen,
            asking(who, "tokenize", "honest", &format!("honest {who}")),
        )
        .await;
        node_seen.until_payload(&format!("honest {who}")).await;
    }
    try_to(
        &node,
        &node_seen,
        message("orinoco/v1/resp/bob/honest", "honest node"),
    )
    .await;
    bob_seen.until_payload("honest node").await;
    let config = message("homeassistant/device/n1/config", "honest discovery");
    try_to(&node, &node_seen, config).await;
    boss_seen.until_payload("honest discovery").await;
    let breaches: Vec<_> = observers
        .iter()
        .flat_map(|(name, seen)| {
            seen.with("attack")
                .into_iter()
                .map(move |found| (name, found))
        })
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");

    // Nor does it wait for somebody who comes later.
    let (_late, late_seen) = arena
        .join(
            "daemon",
            "orinoco-daemon-late",
            &["orinoco/v1/#", "homeassistant/status"],
        )
        .await;
    late_seen.until_topic("/n1/status").await;
    try_to(
        &node,
        &node_seen,
        message("orinoco/v1/resp/bob/late", "honest late"),
    )
    .await;
    late_seen.until_payload("honest late").await;
    assert_eq!(late_seen.with("attack"), []);
}

/// What a user does read, all over its connections: a monitor is not answered, it reads telemetry.
fn honest_topic(who: &str) -> String {
    match who {
        "hall" => "orinoco/v1/n1/tele/honest".to_owned(),
        _ => format!("orinoco/v1/resp/{who}/honest"),
    }
}

/// Whoever may not read a topic is not sent it, whatever it has subscribed to.
pub(crate) async fn what_may_not_be_read_is_not_sent(arena: &Arena) {
    let node_filters = ["orinoco/v1/#", "homeassistant/status"];
    let (node, node_seen) = arena
        .join("daemon", "orinoco-daemon-writes", &node_filters)
        .await;
    let (bob, bob_seen) = arena
        .join("bob", "bob-writes", &["orinoco/v1/resp/bob/#"])
        .await;
    let (boss, boss_seen) = arena
        .join("boss", "boss-writes", &["orinoco/v1/+/cmd/#"])
        .await;
    let mut attackers = Vec::new();
    for (n, Read { who, filter, .. }) in READS.iter().enumerate() {
        let own = honest_topic(who);
        attackers.push(
            arena
                .join(who, &format!("{who}-spy-{n}"), &[filter, &own])
                .await
                .1,
        );
    }
    for (n, Read { writer, topic, .. }) in READS.iter().enumerate() {
        let (link, seen) = match *writer {
            "daemon" => (&node, &node_seen),
            "bob" => (&bob, &bob_seen),
            _ => (&boss, &boss_seen),
        };
        try_to(link, seen, message(topic, &format!("secret {n}"))).await;
    }
    // Those for whom it was have it.
    for (topic, seen) in [
        ("orinoco/v1/resp/bob/s1", &bob_seen),
        ("orinoco/v1/n1/req/bob/tokenize/s1", &node_seen),
        ("orinoco/v1/n1/cmd/restart/s1", &boss_seen),
    ] {
        let row = READS.iter().position(|row| row.topic == topic).unwrap();
        seen.until_payload(&format!("secret {row}")).await;
    }
    for (who, _) in USERS {
        try_to(&node, &node_seen, message(&honest_topic(who), "honest")).await;
    }
    let mut breaches = Vec::new();
    for (Read { who, filter, .. }, seen) in READS.iter().zip(&attackers) {
        seen.until_payload("honest").await;
        // Whatever this user may not read, by whichever filter it came; what it may read is no breach.
        let barred = |payload: &str| {
            let secrets = READS.iter().enumerate().filter(|(_, row)| row.who == *who);
            secrets
                .map(|(n, _)| format!("secret {n}"))
                .any(|secret| secret == payload)
        };
        let found = seen.with("secret").into_iter();
        breaches.extend(
            found
                .filter(|(_, payload)| barred(payload))
                .map(|found| (who, filter, found)),
        );
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
    // Users with such names are answered by nobody, so that there is nothing to read.
    for name in arena.misnamed() {
        let (link, seen) = arena.join(name, &format!("{name}-asks"), &[]).await;
        try_to(&link, &seen, asking(name, "chat", "m1", "!count !tokens 3")).await;
    }
    arena.answers("alice", "after-misnamed").await;
    let answered = node_seen.with("\"id\":\"m1\"");
    assert!(answered.is_empty(), "{answered:?}");
}
