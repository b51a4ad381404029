use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn limits() -> UserLimits {
    UserLimits {
        requests_per_minute_max: Some(60),
        prompt_bytes_per_minute_max: Some(6000),
        queue_jobs_max: 3,
        queue_bytes_max: 1000,
        running_jobs_max: None,
        weight: 1,
        prompt_tokens_per_minute_max: None,
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_minutes_worth_may_come_at_once_and_then_one_for_each_that_the_minute_gives() {
    let (mut quotas, ann, start) = (Quotas::default(), name("ann"), Instant::now());
    let mut arrive = |at| quotas.arrive(&ann, &limits(), 10, start + at);
    for _ in 0..60 {
        assert_eq!(arrive(Duration::ZERO), Ok(()));
    }
    let (per_minute, wait) = (60, SECOND);
    assert_eq!(
        arrive(Duration::ZERO),
        Err(Excess::Requests { per_minute, wait })
    );
    // What was refused was not charged, and the advice is right.
    assert_eq!(arrive(SECOND), Ok(()));
    let wait = SECOND / 2;
    assert_eq!(
        arrive(SECOND * 3 / 2),
        Err(Excess::Requests { per_minute, wait })
    );
}

#[test]
fn prompt_tokens_are_paid_for_when_they_are_counted() {
    let (mut quotas, ann, start) = (Quotas::default(), name("ann"), Instant::now());
    let limits = UserLimits {
        prompt_tokens_per_minute_max: Some(600),
        ..limits()
    };
    assert_eq!(quotas.arrive(&ann, &limits, 10, start), Ok(()));
    quotas.read(&ann, &limits, 599, start);
    assert_eq!(
        quotas.arrive(&ann, &limits, 10, start),
        Ok(()),
        "one is left"
    );
    quotas.read(&ann, &limits, 601, start);
    let refused = quotas.arrive(&ann, &limits, 10, start);
    let Err(Excess::Tokens { per_minute, wait }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(per_minute, 600);
    assert!(wait > SECOND * 60 && wait < SECOND * 61, "{wait:?}");
    assert_eq!(quotas.arrive(&ann, &limits, 10, start + wait), Ok(()));
    // No prompt keeps a user away for longer than an hour.
    quotas.read(&ann, &limits, u64::MAX, start);
    assert_eq!(
        quotas.arrive(&ann, &limits, 10, start + SECOND * 3600),
        Ok(())
    );
}

#[test]
fn bytes_are_counted_beside_requests_and_one_users_flood_is_not_anothers() {
    let (mut quotas, now) = (Quotas::default(), Instant::now());
    let (ann, bob) = (name("ann"), name("bob"));
    assert_eq!(quotas.arrive(&ann, &limits(), 6000, now), Ok(()));
    let (per_minute, wait) = (6000, SECOND);
    assert_eq!(
        quotas.arrive(&ann, &limits(), 100, now),
        Err(Excess::Bytes { per_minute, wait })
    );
    assert_eq!(quotas.arrive(&bob, &limits(), 100, now), Ok(()));
    let (found, max) = (6001, 6000);
    assert_eq!(
        quotas.arrive(&bob, &limits(), 6001, now),
        Err(Excess::TooLarge { found, max })
    );
}

#[test]
fn without_a_limit_everything_passes() {
    let (mut quotas, ann, now) = (Quotas::default(), name("ann"), Instant::now());
    let free = UserLimits {
        requests_per_minute_max: None,
        prompt_bytes_per_minute_max: None,
        ..limits()
    };
    for _ in 0..10_000 {
        assert_eq!(quotas.arrive(&ann, &free, 1 << 20, now), Ok(()));
    }
}

#[test]
fn a_user_has_its_share_of_the_queue_and_gets_it_back() {
    let (mut quotas, ann, now) = (Quotas::default(), name("ann"), Instant::now());
    for _ in 0..3 {
        assert_eq!(quotas.room(&ann, &limits(), 300), Ok(()));
        quotas.entered(&ann, 300);
    }
    let room = |quotas: &Quotas, bytes| quotas.room(&ann, &limits(), bytes);
    assert!(matches!(room(&quotas, 1), Err(Excess::Jobs { max: 3, .. })));
    quotas.left(&ann, 300, now);
    assert!(matches!(
        room(&quotas, 401),
        Err(Excess::JobBytes { max: 1000, .. })
    ));
    assert_eq!(room(&quotas, 400), Ok(()));
    let (found, max) = (1001, 1000);
    assert_eq!(room(&quotas, 1001), Err(Excess::TooLarge { found, max }));
}

#[test]
fn who_floods_is_told_less_and_less_and_the_log_once_a_minute() {
    let (mut quotas, ann, start) = (Quotas::default(), name("ann"), Instant::now());
    let refusals: Vec<Refusal> = (0..60_000)
        .map(|ms| quotas.refuse(&ann, start + Duration::from_millis(ms)))
        .collect();
    let n_told = refusals.iter().filter(|refusal| refusal.told).count() as u64;
    // The bucket, and what flows into it in a minute.
    assert!((REFUSALS_PER_MINUTE..=2 * REFUSALS_PER_MINUTE).contains(&n_told));
    assert!(refusals[0].told && refusals[0].logged);
    assert_eq!(refusals.iter().filter(|refusal| refusal.logged).count(), 1);
    assert!(quotas.refuse(&ann, start + LOG_EVERY).logged);
}

#[test]
fn the_advice_follows_the_pace_at_which_jobs_end() {
    let (mut quotas, ann, mut now) = (Quotas::default(), name("ann"), Instant::now());
    assert_eq!(quotas.wait(), *WAIT.start());
    for _ in 0..200 {
        now += 4 * SECOND;
        quotas.left(&ann, 0, now);
    }
    assert!(quotas.wait() > 3 * SECOND && quotas.wait() < 5 * SECOND);
}

#[test]
fn every_excess_says_when_to_ask_again_or_that_it_never_fits() {
    let wait = SECOND * 3 / 2;
    let (per_minute, max) = (60, 3);
    for excess in [
        Excess::Requests { per_minute, wait },
        Excess::Jobs { max, wait },
        Excess::JobBytes { max, wait },
    ] {
        let error = excess.to_error();
        assert_eq!(error.code.status(), 429);
        assert_eq!(error.retry_after_ms, Some(1501));
    }
    let never = Excess::TooLarge { found: 9, max: 8 }.to_error();
    assert_eq!(
        (never.code, never.retry_after_ms),
        (Code::PayloadTooLarge, None)
    );
}

#[test]
fn names_without_end_take_memory_with_one() {
    let (mut quotas, mut now) = (Quotas::default(), Instant::now());
    for n in 0..3 * USERS_MAX {
        now += Duration::from_micros(10);
        let _ = quotas.arrive(&name(&format!("u{n}")), &limits(), 10, now);
        assert!(quotas.users.len() <= USERS_MAX);
    }
    // Those beyond share one account, until it is known that others are gone.
    assert!(quotas.arrive(&name("late"), &limits(), 10, now).is_err());
    now += 61 * SECOND;
    assert_eq!(quotas.arrive(&name("late"), &limits(), 10, now), Ok(()));
    assert!(quotas.users.len() <= 2, "{}", quotas.users.len());
}

proptest! {
    /// However requests come, no minute takes more than two minutes' worth, and waiting as told helps.
    #[test]
    fn no_minute_takes_more_than_its_worth_and_what_was_kept(
        gaps_ms in prop::collection::vec(0u64..3000, 1..400), per_minute in 1u32..100,
    ) {
        let (mut quotas, ann, start) = (Quotas::default(), name("ann"), Instant::now());
        let limits = UserLimits { requests_per_minute_max: Some(per_minute), ..limits() };
        let (mut at, mut taken) = (Duration::ZERO, Vec::new());
        for gap in gaps_ms {
            at += Duration::from_millis(gap);
            match quotas.arrive(&ann, &limits, 0, start + at) {
                Ok(()) => taken.push(at),
                Err(Excess::Requests { wait, .. }) => {
                    prop_assert!(wait <= Duration::from_secs(60) && wait > Duration::ZERO);
                    let mut again = Quotas::default();
                    std::mem::swap(&mut again.users, &mut quotas.users);
                    let before = again.users[&ann].requests;
                    prop_assert_eq!(again.arrive(&ann, &limits, 0, start + at + wait), Ok(()));
                    again.users.get_mut(&ann).unwrap().requests = before;
                    std::mem::swap(&mut again.users, &mut quotas.users);
                }
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
        for (first, from) in taken.iter().enumerate() {
            let within = taken[first..].iter().filter(|t| **t < *from + Bucket::HOLDS).count();
            prop_assert!(within <= 2 * per_minute as usize, "{} in a minute", within);
        }
    }

    /// Whatever enters and leaves, a user's share is what it has now.
    #[test]
    fn a_share_is_what_entered_and_did_not_leave(
        steps in prop::collection::vec((any::<bool>(), 0usize..3, 1usize..400), 0..200),
    ) {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let mut open: [Vec<usize>; 3] = Default::default();
        for (enters, user, bytes) in steps {
            let of = name(["a", "b", "c"][user]);
            if enters {
                let fits = open[user].len() < 3 && open[user].iter().sum::<usize>() + bytes <= 1000;
                prop_assert_eq!(quotas.room(&of, &limits(), bytes).is_ok(), fits);
                if fits {
                    quotas.entered(&of, bytes);
                    open[user].push(bytes);
                }
            } else if let Some(bytes) = open[user].pop() {
                quotas.left(&of, bytes, now);
            }
        }
    }
}
