//! The governor between a meminfo that a test rewrites and channels that a test reads.

use std::fs;
use std::path::PathBuf;

use tokio::time::timeout;

use super::follow::tests::{Fakes, following};
use super::*;
use crate::frames::{Backend, KvType, Speculation, Switch, Task};
use crate::wire::report::ChosenBy;

pub(super) fn spec() -> LoadSpec {
    LoadSpec {
        name: "large".into(),
        path: PathBuf::from("large.gguf"),
        task: Task::Generate,
        n_ctx: 8192,
        n_ctx_auto_max: 8192,
        n_ctx_seq: 0,
        n_seq_max: 4,
        n_batch: 512,
        n_ubatch: 512,
        step_ms: 400,
        step_tokens: 256,
        speculation: Speculation::Auto,
        draft_tokens: 4,
        n_threads: 1,
        n_threads_batch: 1,
        n_gpu_layers: 0,
        backend: Backend::Cpu,
        kv_type_k: KvType::F16,
        kv_type_v: KvType::F16,
        flash_attn: Switch::Auto,
        mmap: Switch::Auto,
        cuda_graphs: Switch::Auto,
        chat_template: None,
        sandbox: None,
        canary_tokens: 0,
        prefix_cache_bytes: 0,
        saved_states: None,
        draft: None,
    }
}

const MIB: u64 = 1 << 20;

fn thresholds(_total_bytes: u64) -> Thresholds {
    Thresholds {
        trim_bytes: 400 * MIB,
        park_bytes: 300 * MIB,
        shrink_bytes: 200 * MIB,
        kill_bytes: 100 * MIB,
        margin_bytes: 50 * MIB,
        hold: Duration::from_millis(60),
        settle: Duration::from_millis(60),
        stale: Duration::from_millis(500),
    }
}

fn meminfo(available_mib: u64) -> String {
    let available = available_mib << 10;
    format!("MemTotal: {} kB\nMemAvailable: {available} kB\n", 8 << 20)
}

struct Site {
    dir: tempfile::TempDir,
    orders: mpsc::Receiver<Order>,
    words: mpsc::Receiver<Word>,
    notices: mpsc::Sender<Notice>,
    fakes: Fakes,
}

impl Site {
    async fn new(available_mib: u64) -> Self {
        Self::with_meminfo(&meminfo(available_mib)).await
    }

    async fn with_meminfo(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        let (orders, order_queue) = mpsc::channel(8);
        let (words, word_queue) = mpsc::channel(64);
        let (notices, notice_queue) = mpsc::channel(64);
        let small = Candidate {
            load: LoadSpec {
                name: "small".into(),
                ..spec()
            },
            file_bytes: 100 * MIB,
        };
        let large = Candidate {
            load: spec(),
            file_bytes: 1000 * MIB,
        };
        let (mut following, fakes) = following(None);
        following.config.hold = Duration::ZERO;
        let settings = Settings {
            following,
            root: Root::new(dir.path()),
            thresholds: Some(Box::new(thresholds)),
            first: Some(spec()),
            models: Box::new(move || vec![large.clone(), small.clone()]),
        };
        let site = Self {
            dir,
            orders: order_queue,
            words: word_queue,
            notices,
            fakes,
        };
        site.write(text);
        let parts = Parts {
            orders,
            words,
            notices: notice_queue,
            updates: None,
        };
        tokio::spawn(run(settings, parts));
        site.serving("large", 8192).await;
        site
    }

    fn available(&self, mib: u64) {
        self.write(&meminfo(mib));
    }

    fn write(&self, text: &str) {
        let path = self.dir.path().join("proc/meminfo");
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    async fn serving(&self, name: &str, n_ctx: u32) {
        let serving = Serving {
            name: name.into(),
            n_ctx,
            kv_bytes: u64::from(n_ctx) * MIB / 16,
            worker_bytes: 1600 * MIB,
            weights_bytes: 1000 * MIB,
        };
        self.notices.send(Notice::Serving(serving)).await.unwrap();
    }

    async fn word(&mut self, wanted: impl Fn(&Word) -> bool) -> Word {
        let wait = async {
            loop {
                let word = self.words.recv().await.expect("the governor runs");
                if wanted(&word) {
                    return word;
                }
            }
        };
        timeout(Duration::from_secs(60), wait)
            .await
            .expect("the word comes")
    }

    async fn stepped(&mut self) -> (Level, Level, Option<i64>) {
        match self.word(|word| matches!(word, Word::Stepped { .. })).await {
            Word::Stepped {
                change,
                returned_bytes,
                ..
            } => (change.from, change.to, returned_bytes),
            other => panic!("{other:?}"),
        }
    }

    async fn ordered(&mut self) -> Order {
        let order = timeout(Duration::from_secs(60), self.orders.recv()).await;
        order.expect("an order comes").expect("the governor runs")
    }
}

#[tokio::test]
async fn falling_memory_takes_each_step_and_rising_memory_takes_it_back() {
    let mut site = Site::new(4000).await;
    site.available(350);
    site.word(|word| *word == Word::Trim).await;
    assert_eq!(site.stepped().await, (Level::Ok, Level::Trim, Some(0)));

    site.available(250);
    assert_eq!(site.stepped().await.1, Level::Park);

    site.available(150);
    let Order::Serve { load, placing } = site.ordered().await else {
        panic!("a smaller context is loaded")
    };
    assert_eq!(
        (load.name.as_str(), load.n_ctx, placing),
        (
            "large",
            4096,
            Placing::Straitened {
                reserve_bytes: 150 * MIB
            }
        )
    );
    site.serving("large", 4096).await;
    assert_eq!(site.stepped().await.1, Level::Shrink);

    site.available(50);
    let Order::Rest { .. } = site.ordered().await else {
        panic!("the worker is ended")
    };
    site.available(190);
    let (from, to, returned) = site.stepped().await;
    assert_eq!((from, to), (Level::Shrink, Level::Kill));
    assert!(returned >= Some(0), "{returned:?}");

    // Enough to leave the level, and too little for what would be loaded then: 100 + 50 + 700 MiB.
    site.available(800);
    let early = timeout(Duration::from_millis(400), site.orders.recv()).await;
    assert!(early.is_err(), "{early:?}");

    site.available(5000);
    let Order::Serve { load, .. } = site.ordered().await else {
        panic!("something smaller comes back")
    };
    assert_eq!(load.name, "small", "half of half the pool is too little");
    site.serving("small", 8192).await;
    let Order::Serve { load, placing } = site.ordered().await else {
        panic!("all of it comes back")
    };
    assert_eq!((load.n_ctx, placing), (8192, Placing::Beside));
    site.serving("large", 8192).await;
    let mut levels = Vec::new();
    while levels.last() != Some(&Level::Ok) {
        levels.push(site.stepped().await.1);
    }
    assert_eq!(levels, [Level::Shrink, Level::Park, Level::Trim, Level::Ok]);
}

#[tokio::test]
async fn a_model_that_nobody_asks_is_unloaded_and_loaded_again_for_the_next_who_does() {
    let mut site = Site::new(4000).await;
    // It was never unloaded.
    site.notices.send(Notice::Needed).await.unwrap();
    site.notices.send(Notice::Idle).await.unwrap();
    let order = site.ordered().await;
    assert!(matches!(order, Order::Unload), "{order:?}");
    // Nothing is left to unload.
    site.notices.send(Notice::Idle).await.unwrap();
    site.notices.send(Notice::Needed).await.unwrap();
    let Order::Serve { load, placing } = site.ordered().await else {
        panic!("it is loaded again")
    };
    assert_eq!((load, placing), (Box::new(spec()), Placing::Beside));
    site.serving("large", 8192).await;

    // Memory comes first.
    site.available(150);
    let Order::Serve { .. } = site.ordered().await else {
        panic!("something smaller serves")
    };
    site.serving("large", 4096).await;
    assert_eq!(site.stepped().await.1, Level::Shrink);
    site.notices.send(Notice::Idle).await.unwrap();
    let early = timeout(Duration::from_millis(200), site.orders.recv()).await;
    assert!(early.is_err(), "{early:?}");
}

#[tokio::test]
async fn an_unreadable_meminfo_parks_the_node_and_a_readable_one_frees_it() {
    let mut site = Site::new(4000).await;
    site.word(|word| {
        matches!(
            word,
            Word::Pressure {
                level: Level::Ok,
                ..
            }
        )
    })
    .await;
    site.write("MemTotal: many kB\n");
    let stale = |word: &Word| {
        matches!(
            word,
            Word::Pressure {
                level: Level::Park,
                stale: true,
                available_bytes: Some(last),
            } if *last == 4000 * MIB
        )
    };
    site.word(stale).await;
    site.available(4000);
    site.word(|word| {
        matches!(
            word,
            Word::Pressure {
                level: Level::Ok,
                stale: false,
                ..
            }
        )
    })
    .await;
}

#[tokio::test]
async fn a_node_that_never_saw_its_memory_takes_nothing_new_until_it_does() {
    // Cut short, of another kernel, not text at all.
    for unreadable in ["", "MemTotal: 8388608 kB\n", "\u{0}\u{7f}"] {
        let mut site = Site::with_meminfo(unreadable).await;
        let blind = Word::Pressure {
            level: Level::Park,
            available_bytes: None,
            stale: true,
        };
        site.word(|word| *word == blind).await;
        site.available(4000);
        let levels = [Level::Park, Level::Trim, Level::Ok];
        for level in levels {
            let seen = Word::Pressure {
                level,
                available_bytes: Some(4000 * MIB),
                stale: false,
            };
            site.word(|word| *word == seen).await;
        }
    }
}

/// The GPU's memory cannot be swapped out, and zram is made of the memory that is short.
#[tokio::test]
async fn free_swap_puts_off_no_step() {
    let swap = "SwapTotal: 16777216 kB\nSwapFree: 16777216 kB\nZswap: 0 kB\n";
    let mut site = Site::with_meminfo(&(meminfo(4000) + swap)).await;
    site.write(&(meminfo(250) + swap));
    assert_eq!(site.stepped().await.1, Level::Park);
    // Half used, as when the kernel pushes others out for us.
    site.write(&(meminfo(150) + &swap.replace("SwapFree: 16777216", "SwapFree: 8388608")));
    assert_eq!(site.stepped().await.1, Level::Shrink);
}

#[tokio::test]
async fn a_model_that_is_ordered_serves_and_its_ticket_says_so() {
    let mut site = Site::new(4000).await;
    site.word(|word| matches!(word, Word::Pressure { .. }))
        .await;
    let wish = Wish {
        model: "small".into(),
        ticket: Some("c1".into()),
    };
    site.notices.send(Notice::Wish(wish.clone())).await.unwrap();
    site.word(|word| *word == Word::Switching(wish.clone()))
        .await;
    let Order::Serve { load, placing } = site.ordered().await else {
        panic!("the model is loaded")
    };
    assert_eq!((load.name.as_str(), placing), ("small", Placing::Beside));
    site.serving("small", 8192).await;
    let served = Word::Switched {
        errand: Errand::ordered(wish),
        outcome: Ok(()),
    };
    site.word(|word| *word == served).await;
}

#[tokio::test]
async fn another_power_mode_has_its_model_served_and_memory_has_the_last_word() {
    let mut site = Site::new(4000).await;
    let power = |word: &Word| matches!(word, Word::Power(power) if power.n_seq == 4);
    let Word::Power(power) = site.word(power).await else {
        unreachable!()
    };
    assert_eq!(power.mode.as_deref(), Some("fast"));
    assert_eq!(power.chosen_by, ChosenBy::Profile);

    site.fakes.mode("slow");
    let Order::Serve { load, placing } = site.ordered().await else {
        panic!("the small one is loaded")
    };
    assert_eq!((load.name.as_str(), placing), ("small", Placing::Beside));
    site.serving("small", 8192).await;
    let switched = |word: &Word| matches!(word, Word::Switched { .. });
    let Word::Switched { errand, outcome } = site.word(switched).await else {
        unreachable!()
    };
    assert_eq!(errand.why, "power mode slow, profile small");
    assert_eq!((errand.wish, outcome), (None, Ok(())));

    // While memory is short the large one waits.
    site.available(150);
    while site.stepped().await.1 != Level::Shrink {}
    site.fakes.mode("fast");
    let large = |word: &Word| matches!(word, Word::Power(p) if p.mode.as_deref() == Some("fast"));
    site.word(large).await;
    site.available(4000);
    loop {
        let Order::Serve { load, .. } = site.ordered().await else {
            panic!("nothing is ended")
        };
        if load.name == "large" {
            break;
        }
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_for_the_mode_leaves_the_one_before() {
    let mut site = Site::new(4000).await;
    site.fakes.mode("slow");
    site.ordered().await;
    let failed = Notice::SwitchFailed {
        name: "small".into(),
        reason: "the engine was killed".into(),
    };
    site.notices.send(failed).await.unwrap();
    let switched = |word: &Word| matches!(word, Word::Switched { .. });
    let Word::Switched { outcome, .. } = site.word(switched).await else {
        unreachable!()
    };
    assert_eq!(outcome, Err("the engine was killed".into()));
    // It is not tried again and again; an order of the old model finds it in service.
    let wish = Wish {
        model: "large".into(),
        ticket: None,
    };
    site.notices.send(Notice::Wish(wish)).await.unwrap();
    let Word::Switched { outcome, .. } = site.word(switched).await else {
        unreachable!()
    };
    assert_eq!(outcome, Ok(()));
    assert!(site.orders.try_recv().is_err());
}

#[tokio::test]
async fn an_order_that_cannot_be_done_says_why_and_changes_nothing() {
    let mut site = Site::new(4000).await;
    let ask = |model: &str| {
        Notice::Wish(Wish {
            model: model.into(),
            ticket: None,
        })
    };
    site.notices.send(ask("huge")).await.unwrap();
    let Word::Switched { outcome, .. } = site
        .word(|word| matches!(word, Word::Switched { .. }))
        .await
    else {
        unreachable!()
    };
    assert!(outcome.unwrap_err().contains("large, small"));

    site.notices.send(ask("small")).await.unwrap();
    site.ordered().await;
    let failed = Notice::SwitchFailed {
        name: "small".into(),
        reason: "the engine was killed".into(),
    };
    site.notices.send(failed).await.unwrap();
    let Word::Switched { outcome, .. } = site
        .word(|word| matches!(word, Word::Switched { .. }))
        .await
    else {
        unreachable!()
    };
    assert_eq!(outcome, Err("the engine was killed".into()));
}

#[tokio::test]
async fn a_guest_has_its_turn_until_something_goes_before_it() {
    let mut site = Site::new(4000).await;
    let power = |word: &Word| matches!(word, Word::Power(_));
    site.word(power).await;
    site.notices
        .send(Notice::Turn("small".into()))
        .await
        .unwrap();
    let Order::Turn { load, rests } = site.ordered().await else {
        panic!("the guest is loaded")
    };
    assert_eq!((load.name.as_str(), rests), ("small", true));
    site.serving("small", 8192).await;
    let switched = |word: &Word| matches!(word, Word::Switched { .. });
    let Word::Switched { errand, outcome } = site.word(switched).await else {
        unreachable!()
    };
    assert_eq!((errand.model.as_str(), outcome), ("small", Ok(())));

    // An operator who wants the model that is chosen already gets it.
    let wish = Wish {
        model: "large".into(),
        ticket: None,
    };
    site.notices.send(Notice::Wish(wish)).await.unwrap();
    let Order::Serve { load, .. } = site.ordered().await else {
        panic!("what is wanted comes back")
    };
    assert_eq!(load.name, "large");
    // Until it serves nobody else has a turn.
    site.notices
        .send(Notice::Turn("small".into()))
        .await
        .unwrap();
    let no_turn = |word: &Word| matches!(word, Word::NoTurn { model, is_lasting: false, .. } if model == "small");
    site.word(no_turn).await;
    site.serving("large", 8192).await;
    site.word(switched).await;

    // What rests is ended before anything else is done for memory.
    site.notices.send(Notice::Resting(MIB)).await.unwrap();
    // A guest on its way gives way to memory.
    site.notices
        .send(Notice::Turn("small".into()))
        .await
        .unwrap();
    site.ordered().await;
    site.available(150);
    let order = site.ordered().await;
    assert!(matches!(order, Order::Dismiss), "{order:?}");
    site.word(no_turn).await;
    let Order::Serve { load, .. } = site.ordered().await else {
        panic!("something smaller serves")
    };
    assert_eq!((load.name.as_str(), load.n_ctx), ("large", 4096));
}

#[tokio::test]
async fn a_guest_that_cannot_be_loaded_is_waited_for_by_nobody() {
    let mut site = Site::new(4000).await;
    site.notices
        .send(Notice::Turn("small".into()))
        .await
        .unwrap();
    site.ordered().await;
    let failed = Notice::SwitchFailed {
        name: "small".into(),
        reason: "the engine was killed".into(),
    };
    site.notices.send(failed).await.unwrap();
    let lasting = Word::NoTurn {
        model: "small".into(),
        why: "the engine was killed".into(),
        is_lasting: true,
    };
    site.word(|word| *word == lasting).await;
    // The one that is wanted was never away: nothing is loaded for it.
    let wish = Wish {
        model: "large".into(),
        ticket: None,
    };
    site.notices.send(Notice::Wish(wish)).await.unwrap();
    site.word(|word| matches!(word, Word::Switched { errand, .. } if errand.wish.is_some()))
        .await;
    assert!(site.orders.try_recv().is_err());
}
