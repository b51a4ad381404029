use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn keys(n: u64) -> Vec<JobKey> {
    (0..n).map(JobKey).collect()
}

fn user(name: &str) -> Name {
    Name::new(name).unwrap()
}

const NORMAL: Terms = Terms {
    priority: Priority::Normal,
    weight: 1,
    running_max: None,
};
const ALARM: Terms = Terms {
    priority: Priority::Alarm,
    ..NORMAL
};
const BATCH: Terms = Terms {
    priority: Priority::Batch,
    ..NORMAL
};

fn queue_of(n: u64) -> Queue {
    let mut queue = Queue::default();
    for job in keys(n) {
        queue.push(job.0, job, &user("ann"), NORMAL);
    }
    queue
}

fn fill(queue: &mut Queue, n_seq_max: usize) -> Vec<JobKey> {
    std::iter::from_fn(|| queue.next(n_seq_max, |_| false)).collect()
}

#[test]
fn jobs_enter_in_order_of_acceptance_up_to_the_slots() {
    let mut queue = queue_of(5);
    assert_eq!(fill(&mut queue, 3), keys(3));
    queue.remove(JobKey(1));
    assert_eq!(fill(&mut queue, 3), [JobKey(3)]);
    assert_eq!(queue.position(JobKey(4)), Some(0));
}

#[test]
fn a_paused_job_goes_on_before_what_never_began_unless_it_still_has_to_wait() {
    let mut queue = queue_of(4);
    assert_eq!(fill(&mut queue, 2), keys(2));
    queue.pause(JobKey(1));
    queue.pause(JobKey(3)); // Not in the worker: nothing to pause.
    assert_eq!((queue.running(), queue.waiting()), (1, 3));
    assert_eq!(queue.next(1, |_| false), None);
    assert_eq!(queue.next(2, |job| job == JobKey(1)), Some(JobKey(2)));
    queue.remove(JobKey(0));
    assert_eq!(queue.next(2, |_| false), Some(JobKey(1)));
}

#[test]
fn after_a_kill_from_outside_all_run_together_again() {
    let mut queue = queue_of(4);
    for _ in 0..5 {
        assert_eq!(fill(&mut queue, 4), keys(4));
        assert!(
            queue
                .worker_died(false)
                .iter()
                .all(|(_, verdict)| *verdict == Verdict::Again)
        );
    }
}

#[test]
fn the_poison_job_is_found_and_the_other_seven_live() {
    let poison = JobKey(3);
    let mut queue = queue_of(8);
    let mut ended = BTreeSet::new();
    let mut convicted = Vec::new();
    let mut deaths = 0;
    while ended.len() + convicted.len() < 8 {
        let running = fill(&mut queue, 8);
        assert!(!running.is_empty());
        if running.contains(&poison) {
            deaths += 1;
            convicted.extend(
                queue
                    .worker_died(true)
                    .into_iter()
                    .filter(|(_, v)| *v != Verdict::Again),
            );
        } else {
            for job in running {
                queue.remove(job);
                ended.insert(job);
            }
        }
    }
    assert_eq!(convicted, [(poison, Verdict::Poison)]);
    assert_eq!(deaths, 3);
}

#[test]
fn a_job_is_tried_at_most_eight_times() {
    let mut queue = queue_of(1);
    let mut tries = 0;
    loop {
        assert_eq!(fill(&mut queue, 1), keys(1));
        tries += 1;
        match queue.worker_died(false)[0].1 {
            Verdict::Again => {}
            verdict => {
                assert_eq!(verdict, Verdict::GiveUp);
                break;
            }
        }
    }
    assert_eq!(tries, DEATHS_MAX);
}

/// Jobs of users in the order of their acceptance, e.g. "aab".
fn queue_by_users(users: &str) -> Queue {
    let mut queue = Queue::default();
    for (order, name) in users.chars().enumerate() {
        let order = order as u64;
        queue.push(order, JobKey(order), &user(&name.to_string()), NORMAL);
    }
    queue
}

/// The users of the jobs that enter one worker with one sequence, each ending before the next.
fn served(queue: &mut Queue, users: &str) -> String {
    let mut served = String::new();
    while let Some(job) = queue.next(1, |_| false) {
        queue.remove(job);
        served.push(users.chars().nth(job.0 as usize).unwrap());
    }
    served
}

#[test]
fn users_take_turns_whatever_the_order_in_which_they_came() {
    for (came, expected) in [
        ("aaaab", "abaaa"),
        ("aaaabb", "ababaa"),
        ("abcabc", "abcabc"),
        ("aaabbbc", "abcabab"),
    ] {
        assert_eq!(served(&mut queue_by_users(came), came), expected, "{came}");
    }
}

#[test]
fn who_comes_into_a_full_queue_is_next() {
    let mut queue = queue_of(100);
    let running = fill(&mut queue, 4);
    queue.push(100, JobKey(100), &user("bob"), NORMAL);
    assert_eq!(queue.position(JobKey(100)), Some(0));
    queue.remove(running[0]);
    assert_eq!(queue.next(4, |_| false), Some(JobKey(100)));
}

#[test]
fn a_user_with_as_many_running_as_it_may_lets_others_pass() {
    let mut queue = Queue::default();
    let one_at_a_time = Terms {
        running_max: Some(1),
        ..NORMAL
    };
    for order in 0..3 {
        queue.push(order, JobKey(order), &user("ann"), one_at_a_time);
    }
    assert_eq!(fill(&mut queue, 4), [JobKey(0)]);
    queue.push(3, JobKey(3), &user("bob"), NORMAL);
    assert_eq!(fill(&mut queue, 4), [JobKey(3)]);
    queue.remove(JobKey(0));
    assert_eq!(fill(&mut queue, 4), [JobKey(1)]);
}

#[test]
fn what_began_goes_on_before_others_begin() {
    let mut queue = queue_by_users("aab");
    assert_eq!(fill(&mut queue, 2), [JobKey(0), JobKey(2)]);
    queue.push(3, JobKey(3), &user("c"), NORMAL);
    queue.worker_died(false);
    assert_eq!(queue.position(JobKey(2)), Some(1));
    assert_eq!(fill(&mut queue, 3), [JobKey(0), JobKey(2), JobKey(3)]);
}

#[test]
fn what_is_put_back_has_its_turn_again() {
    let mut queue = queue_by_users("aab");
    for _ in 0..3 {
        assert_eq!(queue.next(1, |_| false), Some(JobKey(0)));
        queue.put_back(JobKey(0));
    }
    assert_eq!(served(&mut queue, "aab"), "aba");
}

#[test]
fn an_alarm_goes_before_all_and_batch_after_all() {
    let mut queue = Queue::default();
    let classes = [BATCH, NORMAL, ALARM, NORMAL, ALARM, BATCH];
    for (order, terms) in (0..).zip(classes) {
        queue.push(order, JobKey(order), &user("ann"), terms);
    }
    let line = Vec::from_iter(queue.line());
    assert_eq!(line, [2, 4, 1, 3, 0, 5].map(JobKey));
    assert_eq!(fill(&mut queue, 6), line);
}

#[test]
fn batch_waits_for_sixteen_normal_ones_and_not_for_ever() {
    let mut queue = Queue::default();
    queue.push(0, JobKey(0), &user("bob"), BATCH);
    for order in 1..100 {
        queue.push(order, JobKey(order), &user("ann"), NORMAL);
    }
    let line = Vec::from_iter(queue.line());
    assert_eq!(line[BATCH_AFTER as usize], JobKey(0));
    assert_eq!(queue.position(JobKey(0)), Some(BATCH_AFTER as usize));
    assert_eq!(fill(&mut queue, 100), line);
}

#[test]
fn an_alarm_takes_the_place_of_the_youngest_batch_job_which_goes_on_first_of_its_class() {
    let mut queue = Queue::default();
    for (order, terms) in (0..).zip([BATCH, BATCH, NORMAL, BATCH]) {
        queue.push(order, JobKey(order), &user("ann"), terms);
    }
    assert_eq!(fill(&mut queue, 3), [2, 0, 1].map(JobKey));
    let nobody = |_| false;
    let all = |_| true;
    assert_eq!(queue.room(3, nobody, all), None, "no alarm waits");
    queue.push(4, JobKey(4), &user("ann"), ALARM);
    assert_eq!(queue.room(4, nobody, all), None, "a sequence is free");
    assert_eq!(queue.room(3, nobody, nobody), None, "none may leave");
    let room = queue.room(3, nobody, all).unwrap();
    assert_eq!(room, for_alarm(1, 4));
    queue.make_room(room);
    assert_eq!(fill(&mut queue, 3), [JobKey(4)]);
    assert_eq!(Vec::from_iter(queue.line()), [1, 3].map(JobKey));
    queue.push(5, JobKey(5), &user("ann"), ALARM);
    queue.make_room(queue.room(3, nobody, all).unwrap());
    queue.push(6, JobKey(6), &user("ann"), ALARM);
    assert_eq!(fill(&mut queue, 3), [JobKey(5)]);
    assert_eq!(queue.room(3, nobody, all), None, "normal ones stay");
}

fn for_alarm(victim: u64, newcomer: u64) -> Room {
    Room {
        victim: JobKey(victim),
        newcomer: JobKey(newcomer),
        why: Why::Alarm,
    }
}

fn for_share(victim: u64, newcomer: u64) -> Room {
    Room {
        why: Why::Share,
        ..for_alarm(victim, newcomer)
    }
}

fn room(queue: &Queue, n_seq_max: usize) -> Option<Room> {
    queue.room(n_seq_max, |_| false, |_| true)
}

#[test]
fn who_has_less_than_its_share_takes_a_place_back_from_who_has_more() {
    let mut queue = queue_of(6);
    assert_eq!(fill(&mut queue, 4), keys(4));
    assert_eq!(room(&queue, 4), None, "one user alone has what there is");
    queue.push(6, JobKey(6), &user("bob"), NORMAL);
    let back = room(&queue, 4).unwrap();
    assert_eq!(back, for_share(3, 6), "the youngest leaves");
    queue.make_room(back);
    assert_eq!(fill(&mut queue, 4), [JobKey(6)]);
    queue.push(7, JobKey(7), &user("bob"), NORMAL);
    queue.make_room(room(&queue, 4).unwrap());
    assert_eq!(fill(&mut queue, 4), [JobKey(7)]);
    queue.push(8, JobKey(8), &user("bob"), NORMAL);
    assert_eq!(room(&queue, 4), None, "two and two");
    queue.remove(JobKey(7));
    assert_eq!(fill(&mut queue, 4), [JobKey(8)], "and not a third of ann's");
    queue.remove(JobKey(8));
    assert_eq!(
        fill(&mut queue, 4),
        [JobKey(2)],
        "what left is first of its user's, and has its turn back"
    );
}

#[test]
fn a_share_is_by_weight_and_never_taken_for_batch_nor_from_an_alarm() {
    let mut queue = Queue::default();
    let heavy = Terms {
        weight: 3,
        ..NORMAL
    };
    for order in 0..3 {
        queue.push(order, JobKey(order), &user("heavy"), heavy);
    }
    queue.push(3, JobKey(3), &user("guard"), ALARM);
    queue.push(4, JobKey(4), &user("guard"), ALARM);
    assert_eq!(fill(&mut queue, 5).len(), 5);
    queue.push(5, JobKey(5), &user("bob"), NORMAL);
    assert_eq!(room(&queue, 5), None, "three for three, and alarms stay");
    queue.push(6, JobKey(6), &user("heavy"), heavy);
    assert_eq!(fill(&mut queue, 6), [JobKey(5)]);
    assert_eq!(fill(&mut queue, 7), [JobKey(6)]);
    queue.push(7, JobKey(7), &user("cat"), BATCH);
    assert_eq!(room(&queue, 7), None, "batch has time");
    queue.push(8, JobKey(8), &user("cat"), NORMAL);
    assert_eq!(room(&queue, 7), Some(for_share(6, 8)));
}

#[test]
fn of_what_is_above_its_share_batch_leaves_first_and_does_not_come_back_at_once() {
    let mut queue = Queue::default();
    for (order, terms) in (0..).zip([BATCH, NORMAL, NORMAL]) {
        queue.push(order, JobKey(order), &user("ann"), terms);
    }
    // Sixteen of the class normal passed one of the class batch that was called off then.
    queue.push(50, JobKey(50), &user("cat"), BATCH);
    for order in 51..67 {
        queue.push(order, JobKey(order), &user("dan"), NORMAL);
        assert_eq!(queue.next(1, |job| job.0 < 50), Some(JobKey(order)));
        queue.remove(JobKey(order));
    }
    queue.remove(JobKey(50));
    assert_eq!(fill(&mut queue, 3).len(), 3);
    queue.push(70, JobKey(70), &user("bob"), NORMAL);
    queue.make_room(room(&queue, 3).unwrap());
    assert_eq!(fill(&mut queue, 3), [JobKey(70)]);
    assert!(queue.is_waiting(JobKey(0)));
}

/// It would be given to nobody: a suspect goes first, and waits until it can be alone.
#[test]
fn behind_a_suspect_nobody_is_given_a_place() {
    let mut queue = queue_of(1);
    for _ in 0..2 {
        assert_eq!(fill(&mut queue, 3), [JobKey(0)]);
        queue.worker_died(true);
    }
    for (order, name) in (1..).zip(["bob", "bob", "ann"]) {
        queue.push(order, JobKey(order), &user(name), NORMAL);
    }
    // While something else keeps it waiting, others run.
    while queue.next(3, |job| job == JobKey(0)).is_some() {}
    assert_eq!(queue.running(), 3);
    queue.push(4, JobKey(4), &user("cat"), NORMAL);
    assert_eq!(room(&queue, 3), None, "bob's second stays");
    for job in 1..=3 {
        queue.remove(JobKey(job));
    }
    assert_eq!(fill(&mut queue, 3), [JobKey(0)]);
}

#[test]
fn a_greater_weight_gets_as_many_more_turns() {
    let mut queue = Queue::default();
    for order in 0..40 {
        let (name, weight) = if order < 20 { ("a", 1) } else { ("b", 3) };
        let terms = Terms { weight, ..NORMAL };
        queue.push(order, JobKey(order), &user(name), terms);
    }
    let first = Vec::from_iter(queue.line().take(16));
    let n_of_b = first.iter().filter(|job| job.0 >= 20).count();
    assert_eq!(n_of_b, 12, "{first:?}");
}

fn terms() -> impl Strategy<Value = Terms> {
    let class = prop_oneof![Just(ALARM), Just(NORMAL), Just(NORMAL), Just(BATCH)];
    (class, 1_u32..5).prop_map(|(terms, weight)| Terms { weight, ..terms })
}

proptest! {
    #[test]
    fn no_job_is_lost_doubled_or_run_beside_a_suspect(
        users in prop::collection::vec(0usize..4, 1..20),
        n_seq_max in 1usize..8,
        events in prop::collection::vec(0u8..4, 0..200),
    ) {
        let mut queue = Queue::default();
        for (order, of) in users.iter().enumerate() {
            let order = order as u64;
            queue.push(order, JobKey(order), &user(["a", "b", "c", "d"][*of]), NORMAL);
        }
        let mut alive: BTreeSet<JobKey> = keys(users.len() as u64).into_iter().collect();
        let mut inside: BTreeSet<JobKey> = BTreeSet::new();
        for event in events {
            for job in fill(&mut queue, n_seq_max) {
                prop_assert!(alive.contains(&job) && inside.insert(job));
            }
            prop_assert!(inside.len() <= n_seq_max);
            prop_assert!(inside.len() <= 1 || inside.iter().all(|job| !queue.is_suspect(*job)));
            prop_assert_eq!(queue.waiting() + queue.running(), alive.len());
            prop_assert!(alive.is_empty() || !inside.is_empty(), "work is conserved");
            let suspects = alive.iter().any(|job| queue.is_suspect(*job));
            let free = inside.len() < n_seq_max && queue.waiting() > 0;
            prop_assert!(!free || suspects, "a sequence is free while a job waits");
            match (event, inside.first().copied()) {
                (0 | 1, _) => {
                    for (job, verdict) in queue.worker_died(event == 1) {
                        prop_assert!(inside.remove(&job));
                        if verdict != Verdict::Again { alive.remove(&job); }
                    }
                }
                (2, Some(job)) => { queue.remove(job); inside.remove(&job); alive.remove(&job); }
                (_, Some(job)) => { queue.put_back(job); inside.remove(&job); }
                (_, None) => {}
            }
        }
        for job in alive {
            queue.remove(job);
        }
        let is_clean = queue.users.is_empty() && queue.lanes.iter().all(Lane::is_clean);
        prop_assert!(is_clean, "nothing stays behind");
    }

    /// Between two turns of a user that waits, every other has at most one.
    #[test]
    fn nobody_has_two_turns_while_another_waits(
        users in prop::collection::vec(0usize..5, 1..60), later in prop::collection::vec(0usize..5, 0..60),
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let mut queue = Queue::default();
        let mut of = Vec::new();
        let push = |queue: &mut Queue, of: &mut Vec<usize>, name: usize| {
            let order = of.len() as u64;
            queue.push(order, JobKey(order), &user(names[name]), NORMAL);
            of.push(name);
        };
        for name in users {
            push(&mut queue, &mut of, name);
        }
        let mut later = later.into_iter();
        let mut since = [[0usize; 5]; 5]; // since[a][b]: turns of b since a's last, while a waits
        while let Some(job) = queue.next(1, |_| false) {
            let served = of[job.0 as usize];
            queue.remove(job);
            for waits in 0..5 {
                let has_waiting = queue.lanes[1].has_waiting(names[waits]);
                if waits == served || !has_waiting {
                    since[waits] = [0; 5];
                } else {
                    since[waits][served] += 1;
                    prop_assert!(since[waits][served] <= 1, "{} before {}", names[served], names[waits]);
                }
            }
            if let Some(name) = later.next() {
                push(&mut queue, &mut of, name);
            }
        }
    }

    #[test]
    fn the_position_is_how_many_go_before(
        users in prop::collection::vec(0usize..4, 1..30), n_begun in 0usize..4, n_served in 0usize..6,
    ) {
        let mut queue = Queue::default();
        for (order, of) in users.iter().enumerate() {
            let order = order as u64;
            queue.push(order, JobKey(order), &user(["a", "b", "c", "d"][*of]), NORMAL);
        }
        for _ in 0..n_served {
            if let Some(job) = queue.next(1, |_| false) {
                queue.remove(job);
            }
        }
        fill(&mut queue, n_begun);
        queue.worker_died(false);
        let told: BTreeSet<_> = keys(users.len() as u64)
            .into_iter()
            .filter_map(|job| Some((queue.position(job)?, job)))
            .collect();
        let one = std::iter::from_fn(|| {
            let job = queue.next(1, |_| false)?;
            queue.remove(job);
            Some(job)
        });
        for (n, job) in one.enumerate() {
            prop_assert!(told.contains(&(n, job)), "{n} {job:?} {told:?}");
        }
    }

    /// Everything at once: classes, weights, preemption, deaths, cancels; each job ends once, no sequence stays
    /// free while a job waits, none is lost, and the line is what happens.
    #[test]
    fn sequences_are_never_lost_and_never_idle(
        jobs in prop::collection::vec((0usize..4, terms()), 1..40),
        n_seq_max in 1usize..5,
        events in prop::collection::vec((0u8..8, any::<prop::sample::Index>()), 0..200),
    ) {
        let mut queue = Queue::default();
        let mut coming = jobs.into_iter().enumerate();
        let mut of = BTreeMap::new();
        let (mut alive, mut inside, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (event, which) in events {
            let mut entered = Vec::new();
            loop {
                let room = room(&queue, n_seq_max);
                if let Some(room) = room {
                    prop_assert!(inside.remove(&room.victim));
                    let (victim, newcomer) = (of[&room.victim], of[&room.newcomer]);
                    match room.why {
                        Why::Alarm => prop_assert_eq!((victim, newcomer), (Priority::Batch, Priority::Alarm)),
                        Why::Share => prop_assert!(victim != Priority::Alarm && newcomer != Priority::Batch),
                    }
                    queue.make_room(room);
                }
                let line = Vec::from_iter(queue.line());
                let Some(job) = queue.next(n_seq_max, |_| false) else {
                    prop_assert_eq!(room, None, "a place is given up and not taken");
                    break;
                };
                let user = |job| &queue.jobs[&job].user;
                prop_assert!(room.is_none_or(|room| room.why == Why::Alarm || user(room.victim) != user(job)));
                let is_first = line[0] == job || queue.is_suspect(job);
                prop_assert!(is_first || queue.user_of(line[0]).n_running > 0, "{:?} {:?}", line, job);
                inside.insert(job);
                entered.push(job);
                prop_assert!(entered.len() <= 4 * n_seq_max + 4, "places go round and round");
            }
            if !alive.iter().any(|job| queue.is_suspect(*job)) {
                prop_assert!(inside.len() == n_seq_max.min(alive.len()));
                let waits = queue.lanes[0].waiting() > 0;
                let runs = |class| inside.iter().any(|job| of[job] == class);
                prop_assert!(!(waits && runs(Priority::Batch)), "an alarm waits for a batch job");
            }
            prop_assert!(inside.is_subset(&alive));
            prop_assert!(inside.len() <= n_seq_max);
            prop_assert!(alive.is_empty() || !inside.is_empty(), "work is conserved");
            prop_assert_eq!(queue.running(), inside.len());
            prop_assert_eq!(queue.waiting() + queue.running(), alive.len());
            let pick = |set: &BTreeSet<JobKey>| {
                (!set.is_empty()).then(|| *set.iter().nth(which.index(set.len())).unwrap())
            };
            match event {
                0..3 => if let Some((order, (name, terms))) = coming.next() {
                    let (order, job) = (order as u64, JobKey(order as u64));
                    queue.push(order, job, &user(["a", "b", "c", "d"][name]), terms);
                    of.insert(job, terms.priority);
                    alive.insert(job);
                },
                3 | 4 => if let Some(job) = pick(&inside) {
                    queue.remove(job);
                    inside.remove(&job);
                    prop_assert!(alive.remove(&job) && ended.insert(job));
                },
                5 => if let Some(job) = pick(&alive) {
                    queue.remove(job);
                    inside.remove(&job);
                    prop_assert!(alive.remove(&job) && ended.insert(job));
                },
                6 => for (job, verdict) in queue.worker_died(which.index(2) == 1) {
                    prop_assert!(inside.remove(&job));
                    if verdict != Verdict::Again {
                        prop_assert!(alive.remove(&job) && ended.insert(job));
                    }
                },
                _ => if let Some(job) = pick(&inside) {
                    queue.put_back(job);
                    inside.remove(&job);
                },
            }
        }
        for job in alive {
            queue.remove(job);
        }
        let is_clean = queue.users.is_empty() && queue.lanes.iter().all(Lane::is_clean);
        prop_assert!(is_clean, "nothing stays behind");
    }

    /// However places were taken: as soon as nothing more can change, nobody who waits has less than its share while
    /// another has more; and each step before that went that way.
    #[test]
    fn shares_are_even(
        users in prop::collection::vec((0usize..4, 0u8..4), 1..60), weights in prop::collection::vec(1_u32..5, 4),
        n_seq_max in 1usize..9,
    ) {
        let names = ["a", "b", "c", "d"];
        let mut queue = Queue::default();
        for (order, (name, event)) in (0..).zip(users) {
            queue.push(order, JobKey(order), &user(names[name]), Terms { weight: weights[name], ..NORMAL });
            if event == 0 && let Some(job) = queue.running_jobs().first() {
                queue.remove(*job);
            }
            let mut n_rooms = 0;
            loop {
                match room(&queue, n_seq_max) {
                    Some(room) => {
                        let (from, to) = (queue.user_of(room.victim), queue.user_of(room.newcomer));
                        prop_assert!(from.share_of(from.n_running) > to.share_of(to.n_running));
                        queue.make_room(room);
                        n_rooms += 1;
                        prop_assert!(n_rooms <= n_seq_max, "places go round and round");
                    }
                    None if queue.running() == n_seq_max => break,
                    None => {}
                }
                if queue.next(n_seq_max, |_| false).is_none() {
                    break;
                }
            }
            prop_assert_eq!(queue.running(), n_seq_max.min(queue.running() + queue.waiting()));
            let waits = queue.users.iter().filter(|(name, _)| queue.lanes[1].has_waiting(name.as_str()));
            for (_, who) in waits {
                for other in queue.users.values() {
                    prop_assert!(!other.owes(other.n_running, who));
                }
            }
        }
    }

    /// Whatever keeps coming, a job of the classes normal and batch has its turn after a bounded number of
    /// others, alarms apart.
    #[test]
    fn nobody_starves(weights in prop::collection::vec(1_u32..5, 4), waits_in_batch: bool, flood in prop::collection::vec((1usize..4, any::<bool>()), 400)) {
        let mut queue = Queue::default();
        let names = ["quiet", "b", "c", "d"];
        let class = if waits_in_batch { BATCH } else { NORMAL };
        let mut order = 0;
        let mut push = |queue: &mut Queue, name: usize, terms: Terms| {
            queue.push(order, JobKey(order), &user(names[name]), Terms { weight: weights[name], ..terms });
            order += 1;
        };
        for (name, is_batch) in &flood[..100] {
            push(&mut queue, *name, if *is_batch { BATCH } else { NORMAL });
        }
        push(&mut queue, 0, class);
        let mut n_before = 0;
        for (name, is_batch) in &flood[100..] {
            let job = queue.next(1, |_| false).unwrap();
            queue.remove(job);
            if job == JobKey(100) {
                break;
            }
            n_before += 1;
            push(&mut queue, *name, if *is_batch { BATCH } else { NORMAL });
        }
        // Before one turn of a user of weight 1, each of three others has at most its weight and one; before
        // each turn of the class batch sixteen of the other.
        let turns = 3 * (4 + 1) + 1;
        let most = if waits_in_batch { turns * (BATCH_AFTER as usize + 1) } else { turns + turns / 16 + 1 };
        prop_assert!(n_before <= most, "{} {}", n_before, most);
    }
}
