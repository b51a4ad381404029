//! A power mode that changes while it is watched: by inotify alone and by polling alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orinoco::board::nvpmodel::{self, query};
use orinoco::board::power::{NamedBy, Present};
use orinoco::board::watch::{PowerWatch, WatchConfig};
use tokio::sync::watch;

use crate::reading::mode;
use crate::support::board::Tree;

/// Far beyond what the watch promises, so that a loaded machine fails no test, and an endless wait does.
const PATIENCE: Duration = Duration::from_secs(20);

/// An hour between looks: what is noticed is noticed by inotify.
fn by_notice(tree: &Tree) -> watch::Receiver<Present> {
    spawn(tree, |config| config.poll = Duration::from_secs(3600))
}

/// No inotify: what is noticed is noticed by looking.
fn by_polling(tree: &Tree) -> watch::Receiver<Present> {
    spawn(tree, |config| config.is_notified = false)
}

fn spawn(tree: &Tree, change: impl FnOnce(&mut WatchConfig)) -> watch::Receiver<Present> {
    let mut config = WatchConfig::new(&tree.root());
    assert_eq!(
        (config.poll, config.query.is_none()),
        (Duration::from_millis(500), true)
    );
    change(&mut config);
    let (watch, receiver) = PowerWatch::new(&tree.root(), None, config);
    tokio::spawn(watch.run());
    receiver
}

async fn named(receiver: &mut watch::Receiver<Present>, name: &str, by: NamedBy) {
    let is_there = |present: &Present| mode(present) == Some((name, by));
    let waited = tokio::time::timeout(PATIENCE, receiver.wait_for(is_there)).await;
    match waited {
        Ok(present) => drop(present.unwrap()),
        Err(_) => panic!("waited for {name}"),
    }
}

/// Lets the watch place its first inotify watch: it runs on this same thread.
async fn is_watching() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_rewritten_status_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        let mut present = watch(&tree);
        assert_eq!(
            mode(&present.borrow()),
            Some(("MAXN_SUPER", NamedBy::Status))
        );
        is_watching().await;
        tree.set_mode("25W");
        named(&mut present, "25W", NamedBy::Status).await;
        tree.set_mode("40W");
        // By notice it is known at once or never: that watch polls once an hour.
        named(&mut present, "40W", NamedBy::Status).await;
        assert_eq!(present.borrow().caps.gpu_hz, Some(1_173_000_000));
    }
}

#[tokio::test]
async fn a_replaced_removed_and_returning_status_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        let mut present = watch(&tree);
        is_watching().await;
        tree.replace(nvpmodel::STATUS, "pmode:0003\n");
        named(&mut present, "25W", NamedBy::Status).await;
        tree.remove(nvpmodel::STATUS);
        named(&mut present, "40W", NamedBy::Default).await;
        tree.replace(nvpmodel::STATUS, "pmode:0002\n");
        named(&mut present, "15W", NamedBy::Status).await;
    }
}

#[tokio::test]
async fn a_directory_that_comes_later_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        tree.remove("var/lib");
        let mut present = watch(&tree);
        assert_eq!(mode(&present.borrow()), Some(("40W", NamedBy::Default)));
        is_watching().await;
        tree.write(nvpmodel::STATUS, "pmode:0001\n");
        named(&mut present, "10W", NamedBy::Status).await;
        tree.remove("var/lib/nvpmodel");
        named(&mut present, "40W", NamedBy::Default).await;
        tree.write(nvpmodel::STATUS, "pmode:0003\n");
        named(&mut present, "25W", NamedBy::Status).await;
    }
}

#[tokio::test]
async fn clocks_that_change_alone_are_noticed_by_polling() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_polling(&tree);
    tree.write("sys/devices/system/cpu/online", "0-3\n");
    let changed = present.wait_for(|present| present.caps.n_cores == Some(4));
    tokio::time::timeout(PATIENCE, changed)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(present.borrow().differences.len(), 1);
}

#[tokio::test]
async fn a_status_caught_half_written_is_not_believed_at_once() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_notice(&tree);
    is_watching().await;
    tree.write(nvpmodel::STATUS, "pmo");
    // Nothing must happen, which only time can show.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!present.has_changed().unwrap(), "{:?}", present.borrow());
    tree.write(nvpmodel::STATUS, "pmode:0003\n");
    named(&mut present, "25W", NamedBy::Status).await;
}

#[tokio::test]
async fn a_status_that_stays_broken_is_told() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_polling(&tree);
    tree.write(nvpmodel::STATUS, "broken\n");
    let is_told = present.wait_for(|present| present.is_status_bad());
    tokio::time::timeout(PATIENCE, is_told)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(present.borrow().named_by, NamedBy::Nobody);
    // What is in force is known all the same.
    assert_eq!(present.borrow().caps.gpu_hz, Some(1_173_000_000));
}

#[tokio::test]
async fn the_tool_is_asked_when_the_status_does_not_help() {
    let tree = Tree::new("status-garbage");
    let mut present = spawn(&tree, |config| {
        config.query = Some(tool("answers"));
        config.query_limit = PATIENCE;
    });
    named(&mut present, "15W", NamedBy::Query).await;
    tree.write(nvpmodel::STATUS, "pmode:0003\n");
    named(&mut present, "25W", NamedBy::Status).await;
}

#[tokio::test]
async fn a_tool_that_hangs_floods_or_is_missing_is_given_up() {
    let ask = async |name: &str, limit_ms| {
        let asked = query::ask(&tool(name), Duration::from_millis(limit_ms)).await;
        asked.unwrap_err().to_string()
    };
    let error = ask("missing", 5000).await;
    assert!(
        error.ends_with("No such file or directory (os error 2)"),
        "{error}"
    );
    let error = ask("hangs", 50).await;
    assert!(error.ends_with("no answer within 50 ms"), "{error}");
    let error = ask("floods", 60_000).await;
    assert!(error.contains("found \"end of file\""), "{error}");
}

/// Stands in for NVIDIA's nvpmodel.
fn tool(name: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boards/tools");
    tools.join(name)
}
