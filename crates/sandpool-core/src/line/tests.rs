use proptest::prelude::*;

use super::*;

fn tenant(number: usize) -> TenantName {
    TenantName::parse(&format!("t{number}")).unwrap()
}

fn serve(line: &mut Line) -> Option<TenantName> {
    let first = line.first(1).next()?;
    let tenant = line.waiting[&first].clone();
    line.served(first);
    Some(tenant)
}

#[test]
fn who_comes_anew_is_not_behind_all_of_a_noisy_tenants_callers() {
    let mut line = Line::new(100);
    for _ in 0..50 {
        line.join(&tenant(0), 1).unwrap();
    }
    assert_eq!(serve(&mut line), Some(tenant(0)));
    let quiet = line.join(&tenant(1), 1).unwrap();
    assert!(line.is_among_first(quiet, 1));
    assert_eq!(serve(&mut line), Some(tenant(1)));
}

#[test]
fn a_tenant_has_so_many_callers_in_line_and_no_more() {
    let mut line = Line::new(2);
    let first = line.join(&tenant(0), 1).unwrap();
    line.join(&tenant(0), 1).unwrap();
    assert_eq!(line.join(&tenant(0), 1), Err(LineFull));
    line.join(&tenant(1), 1).unwrap();
    line.left(first);
    line.left(first);
    line.join(&tenant(0), 1).unwrap();
    assert_eq!(line.len(), 3);
}

proptest! {
    /// While all of them wait, each tenant is served by its weight, to within one place for each that competes.
    #[test]
    fn backlogged_tenants_are_served_by_weight(weights in proptest::collection::vec(1..8_u32, 2..6), rounds in 1..60_usize) {
        let mut line = Line::new(10_000);
        let sum: u32 = weights.iter().sum();
        let places = rounds * sum as usize;
        for (number, weight) in weights.iter().enumerate() {
            for _ in 0..places {
                line.join(&tenant(number), *weight).unwrap();
            }
        }
        let mut served = vec![0_usize; weights.len()];
        for place in 1..=places {
            let who = serve(&mut line).unwrap();
            let number = (0..weights.len()).find(|number| tenant(*number) == who).unwrap();
            served[number] += 1;
            for (number, weight) in weights.iter().enumerate() {
                let due = place as f64 * f64::from(*weight) / f64::from(sum);
                prop_assert!((served[number] as f64 - due).abs() <= weights.len() as f64, "{served:?} of {weights:?}");
            }
        }
    }

    /// Whatever comes and goes: nobody is lost, nobody is served twice, and a tenant's callers are served in the order in which
    /// they came.
    #[test]
    fn nobody_is_lost(steps in proptest::collection::vec((0..4_u8, 0..3_usize, 1..4_u32), 0..300)) {
        let mut line = Line::new(20);
        let mut there: Vec<(Ticket, usize)> = Vec::new();
        for (what, who, weight) in steps {
            match what {
                0 | 1 => match line.join(&tenant(who), weight) {
                    Ok(ticket) => there.push((ticket, who)),
                    Err(LineFull) => prop_assert_eq!(there.iter().filter(|(_, other)| *other == who).count(), 20),
                },
                2 => {
                    let first = line.first(1).next();
                    if let Some(first) = first {
                        let place = there.iter().position(|(ticket, _)| *ticket == first).unwrap();
                        let (_, who) = there[place];
                        prop_assert!(there[..place].iter().all(|(_, other)| *other != who));
                        line.served(first);
                        there.remove(place);
                    }
                }
                _ => {
                    if !there.is_empty() {
                        let (ticket, _) = there.remove(who % there.len());
                        line.left(ticket);
                    }
                }
            }
            prop_assert_eq!(line.len(), there.len());
            prop_assert_eq!(line.is_empty(), there.is_empty());
        }
    }
}
