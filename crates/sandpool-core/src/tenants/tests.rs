use proptest::prelude::*;

use super::*;

fn quota() -> Quota {
    Quota {
        sessions: Some(3),
        creates_per_second: Some(2),
        executions: Some(2),
        cpu_per_hour: Some(Duration::from_secs(60)),
        stored_bytes: Some(1_000),
        egress_bytes_per_hour: Some(3_600),
    }
}

fn at(milliseconds: u64) -> Moment {
    Duration::from_secs(10_000) + Duration::from_millis(milliseconds)
}

fn refused(outcome: Result<(), Refusal>) -> (Resource, u64, Duration) {
    let Refusal { resource, limit, retry_after } = outcome.unwrap_err();
    (resource, limit, retry_after)
}

#[test]
fn sessions_come_as_fast_and_as_many_as_allowed() {
    let mut meter = Meter::new(quota());
    for _ in 0..2 {
        meter.may_open(at(0)).unwrap();
        meter.opened(at(0));
    }
    assert_eq!(refused(meter.may_open(at(100))), (Resource::Creates, 2, Duration::from_millis(400)));
    meter.may_open(at(500)).unwrap();
    meter.opened(at(500));
    assert_eq!(refused(meter.may_open(at(60_000))), (Resource::Sessions, 3, Duration::from_secs(1)));
    meter.closed();
    meter.may_open(at(60_000)).unwrap();
}

#[test]
fn executions_have_places() {
    let mut meter = Meter::new(quota());
    meter.begin(at(0)).unwrap();
    meter.begin(at(0)).unwrap();
    assert_eq!(refused(meter.begin(at(0))).0, Resource::Executions);
    meter.end();
    meter.begin(at(0)).unwrap();
}

#[test]
fn processor_time_that_is_used_up_comes_back_within_the_hour() {
    let mut meter = Meter::new(quota());
    meter.used(computed(59), at(0));
    meter.begin(at(0)).unwrap();
    // Two seconds over the minute of an hour: a minute for each, and one second to have something.
    meter.used(computed(3), at(0));
    assert_eq!(refused(meter.begin(at(0))), (Resource::Cpu, 60, Duration::from_secs(121)));
    assert_eq!(refused(meter.may_open(at(0))).0, Resource::Cpu);
    meter.may_open(at(121_000)).unwrap();
}

fn computed(seconds: u64) -> Used {
    Used { cpu: Duration::from_secs(seconds), ..Used::default() }
}

#[test]
fn bytes_that_were_moved_come_back_within_the_hour() {
    let mut meter = Meter::new(quota());
    meter.used(Used { moved: 3_599, ..Used::default() }, at(0));
    meter.begin(at(0)).unwrap();
    meter.end();
    // A byte a second, and one second to have something.
    meter.used(Used { moved: 11, ..Used::default() }, at(0));
    assert_eq!(refused(meter.begin(at(0))), (Resource::Egress, 3_600, Duration::from_secs(11)));
    assert_eq!(refused(meter.may_open(at(0))).0, Resource::Egress);
    meter.begin(at(11_000)).unwrap();
}

#[test]
fn what_is_stored_is_given_back_by_who_stores_it() {
    let mut meter = Meter::new(quota());
    let stored = |stored_before, stored| Used { stored_before, stored, ..Used::default() };
    meter.used(stored(0, 600), at(0));
    meter.may_store().unwrap();
    meter.used(stored(0, 400), at(0));
    assert_eq!(refused(meter.may_store()), (Resource::Stored, 1_000, Duration::from_secs(5)));
    assert_eq!(refused(meter.may_open(at(0))).0, Resource::Stored);
    // What runs may remove something.
    meter.begin(at(0)).unwrap();
    meter.used(stored(400, 0), at(0));
    meter.may_store().unwrap();
}

#[test]
fn without_a_quota_everything_is_allowed() {
    let mut meter = Meter::new(Quota::default());
    for _ in 0..10_000 {
        meter.may_open(at(0)).unwrap();
        meter.opened(at(0));
        meter.begin(at(0)).unwrap();
        meter.used(Used { moved: 1 << 40, stored: 1 << 40, ..computed(1) }, at(0));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Passes(u64),
    Opens,
    Closes,
    Begins,
    Ends,
    Computes(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..2_000_u64).prop_map(Step::Passes),
        Just(Step::Opens),
        Just(Step::Opens),
        Just(Step::Closes),
        Just(Step::Begins),
        Just(Step::Ends),
        (0..20_000_u64).prop_map(Step::Computes),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// However a tenant behaves: never more sessions or executions than allowed, never more new sessions in a time
    /// than a second's worth and what that time brings, and who comes again when told is not refused for the same rate.
    #[test]
    fn no_behaviour_gets_more_than_the_quota(
        steps in steps(), sessions in 1..5_u32, rate in 1..5_u32, executions in 1..4_u32, budget in 1..100_u64,
    ) {
        let quota = Quota {
            sessions: Some(sessions),
            creates_per_second: Some(rate),
            executions: Some(executions),
            cpu_per_hour: Some(Duration::from_secs(budget)),
            ..Quota::default()
        };
        let mut meter = Meter::new(quota);
        let (mut now, mut open, mut runs) = (at(0), 0, 0);
        let mut created: Vec<Moment> = Vec::new();
        for step in steps {
            match step {
                Step::Passes(milliseconds) => now += Duration::from_millis(milliseconds),
                Step::Opens => match meter.may_open(now) {
                    Ok(()) => {
                        meter.opened(now);
                        open += 1;
                        created.push(now);
                    }
                    Err(refusal) if refusal.resource == Resource::Sessions => prop_assert_eq!(open, sessions),
                    Err(refusal) => {
                        let again = meter.may_open(now + refusal.retry_after).err().map(|again| again.resource);
                        prop_assert_ne!(again, Some(refusal.resource));
                    }
                },
                Step::Closes if open > 0 => {
                    meter.closed();
                    open -= 1;
                }
                Step::Begins => match meter.begin(now) {
                    Ok(()) => runs += 1,
                    Err(refusal) if refusal.resource == Resource::Executions => prop_assert_eq!(runs, executions),
                    Err(refusal) => {
                        prop_assert_eq!(refusal.resource, Resource::Cpu);
                        prop_assert!(meter.clone().begin(now + refusal.retry_after).is_ok());
                    }
                },
                Step::Ends if runs > 0 => {
                    meter.end();
                    runs -= 1;
                }
                Step::Computes(milliseconds) => meter.used(Used { cpu: Duration::from_millis(milliseconds), ..Used::default() }, now),
                Step::Closes | Step::Ends => {}
            }
            prop_assert!(open <= sessions && runs <= executions);
            prop_assert_eq!(meter.uses(), (open, runs));
        }
        for (at, first) in created.iter().enumerate() {
            for (more, last) in created[at..].iter().enumerate() {
                let brought = (*last - *first).as_secs_f64() * f64::from(rate);
                prop_assert!(f64::from(u32::try_from(more).unwrap()) <= brought + f64::from(rate), "{created:?}");
            }
        }
    }
}

#[test]
fn who_asks_without_end_hears_its_refusals_later_and_at_last_at_an_even_rate() {
    let mut meter = Meter::new(Quota { executions: Some(1), ..Quota::default() });
    let now = Moment::from_secs(1_000);
    for _ in 0..REFUSALS_PER_SECOND {
        assert_eq!(meter.refused(now), Duration::ZERO, "a second's worth at once");
    }
    let each = each(REFUSALS_PER_SECOND);
    assert_eq!(meter.refused(now), each);
    assert_eq!(meter.refused(now), 2 * each);
    // One caller that waits each time is held to the rate.
    let (mut at, mut heard) = (now + 2 * each, 0);
    while at < now + Duration::from_secs(10) {
        at += meter.refused(at);
        heard += 1;
    }
    assert!((REFUSALS_PER_SECOND * 9..=REFUSALS_PER_SECOND * 10 + 1).contains(&heard), "{heard}");
    for _ in 0..100_000 {
        assert!(meter.refused(at) <= LONGEST_HOLD);
    }
    let later = at + Duration::from_secs(2);
    assert_eq!(meter.refused(later), Duration::ZERO, "it is forgotten");
}

#[test]
fn how_a_tenant_stands_is_what_it_is_held_against() {
    let mut meter = Meter::new(Quota { stored_bytes: None, ..quota() });
    meter.opened(at(0));
    meter.begin(at(0)).unwrap();
    meter.used(Used { cpu: Duration::from_secs(30), moved: 7_200, ..Used::default() }, at(0));
    let standing = |meter: &Meter, now| {
        meter.standing(now).iter().map(|one| (one.resource, one.used, one.limit)).collect::<Vec<_>>()
    };
    let expected = [
        (Resource::Sessions, 1.0, 3.0),
        (Resource::Creates, 1.0, 2.0),
        (Resource::Executions, 1.0, 2.0),
        (Resource::Cpu, 30.0, 60.0),
        (Resource::Egress, 7_200.0, 3_600.0),
    ];
    assert_eq!(standing(&meter, at(0)), expected);
    // Half an hour later half of what there is in an hour has come again.
    let later: Vec<_> = standing(&meter, at(1_800_000)).into_iter().map(|(_, used, _)| used).collect();
    assert_eq!(later, [1.0, 0.0, 1.0, 0.0, 5_400.0]);
}
