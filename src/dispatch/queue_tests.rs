use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn keys(n: u64) -> Vec<JobKey> {
    (0..n).map(JobKey).collect()
}

fn queue_of(n: u64) -> Queue {
    let mut queue = Queue::default();
    for job in keys(n) {
        queue.push(job.0, job);
    }
    queue
}

fn fill(queue: &mut Queue, n_seq_max: usize) -> Vec<JobKey> {
    std::iter::from_fn(|| queue.next(n_seq_max)).collect()
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

proptest! {
    #[test]
    fn no_job_is_lost_doubled_or_run_beside_a_suspect(
        n_jobs in 1u64..20, n_seq_max in 1usize..8, events in prop::collection::vec(0u8..4, 0..200),
    ) {
        let mut queue = queue_of(n_jobs);
        let mut alive: BTreeSet<JobKey> = keys(n_jobs).into_iter().collect();
        let mut inside: BTreeSet<JobKey> = BTreeSet::new();
        for event in events {
            for job in fill(&mut queue, n_seq_max) {
                prop_assert!(alive.contains(&job) && inside.insert(job));
            }
            prop_assert!(inside.len() <= n_seq_max);
            prop_assert!(inside.len() <= 1 || inside.iter().all(|job| !queue.is_suspect(*job)));
            prop_assert_eq!(queue.waiting() + queue.running(), alive.len());
            prop_assert!(alive.is_empty() || !inside.is_empty(), "work is conserved");
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
    }
}
