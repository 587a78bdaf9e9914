use super::*;
use proptest::prelude::*;

fn events(log: &Log) -> Vec<(u64, Event)> {
    let mut rest = log.read(0, usize::MAX);
    let mut events = Vec::new();
    while let Some((message, used)) = frame::take::<FromAgent>(rest).unwrap() {
        let FromAgent::Event { seq, event, .. } = message else { panic!("not an event") };
        events.push((seq, event));
        rest = &rest[used..];
    }
    assert!(rest.is_empty(), "half a frame");
    events
}

fn stdout_of(log: &Log) -> Vec<u8> {
    events(log)
        .into_iter()
        .flat_map(|(_, event)| if let Event::Stdout(bytes) = event { bytes } else { Vec::new() })
        .collect()
}

#[test]
fn output_over_the_limit_is_counted_and_dropped() {
    let mut log = Log::new([0; 16], 10);
    let now = Instant::now();
    log.started();
    log.output(Channel::Stdout, b"1234567", now);
    log.output(Channel::Stderr, b"1234567", now);
    log.output(Channel::Stdout, b"x", now);
    log.finish(Outcome::Succeeded, Duration::ZERO, false);
    let events = events(&log);
    assert_eq!(events[1], (2, Event::Stdout(b"1234567".to_vec())));
    assert_eq!(events[2], (3, Event::Stderr(b"123".to_vec())));
    let (4, Event::Finished(finished)) = &events[3] else { panic!("{events:?}") };
    assert_eq!(finished.dropped, (1, 4));
}

#[test]
fn a_program_that_writes_byte_by_byte_fills_few_events() {
    let mut log = Log::new([0; 16], 1_000_000);
    let start = Instant::now();
    for step in 0..10_000_u64 {
        let now = start + Duration::from_micros(step);
        log.output(Channel::Stdout, b"x", now);
        log.pass_on(now);
    }
    log.finish(Outcome::Succeeded, Duration::ZERO, false);
    assert_eq!(stdout_of(&log).len(), 10_000);
    assert!(events(&log).len() <= 5, "{} events", events(&log).len());
}

#[test]
fn the_first_output_after_a_pause_goes_out_at_once() {
    let mut log = Log::new([0; 16], 100);
    let now = Instant::now();
    log.output(Channel::Stdout, b"a", now);
    assert_eq!(stdout_of(&log), b"a");
    log.output(Channel::Stdout, b"b", now);
    assert_eq!(stdout_of(&log), b"a");
    let due = log.due().unwrap();
    log.pass_on(due);
    assert_eq!(stdout_of(&log), b"ab");
}

#[test]
fn a_reader_goes_on_where_it_left_off() {
    let mut log = Log::new([0; 16], 100);
    let now = Instant::now();
    log.started();
    log.output(Channel::Stdout, b"a", now);
    log.output(Channel::Stderr, b"b", now);
    log.finish(Outcome::Exited(0), Duration::ZERO, false);
    let all = log.read(0, usize::MAX);
    for seq in 0..6 {
        let position = log.position_after(seq);
        let (rest, first) = (log.read(position, usize::MAX), log.read(position, 1));
        assert_eq!([&all[..position], rest].concat(), all);
        match frame::take::<FromAgent>(first).unwrap() {
            Some((FromAgent::Event { seq: next, .. }, used)) => assert_eq!((next, used), (seq + 1, first.len())),
            other => assert!(seq >= 4 && other.is_none(), "{seq}: {other:?}"),
        }
    }
}

#[test]
fn nothing_comes_after_the_end() {
    let mut log = Log::new([0; 16], 100);
    log.finish(Outcome::Succeeded, Duration::ZERO, false);
    let size = log.size();
    log.output(Channel::Stdout, b"late", Instant::now());
    log.display(Rich::default());
    log.finish(Outcome::Raised, Duration::ZERO, false);
    assert_eq!(log.size(), size);
}

#[test]
fn forms_that_are_too_large_are_named() {
    let mut log = Log::new([0; 16], 100);
    let forms = vec![("image/png".to_owned(), vec![0; FORMS_LIMIT + 1]), ("text/html".to_owned(), b"<b>".to_vec())];
    log.display(Rich { text: "é".repeat(TEXT_LIMIT), forms, ..Rich::default() });
    let (_, Event::Display(rich)) = &events(&log)[0] else { panic!() };
    assert_eq!(rich.forms, [("text/html".to_owned(), b"<b>".to_vec())]);
    assert_eq!(rich.dropped, [("image/png".to_owned(), FORMS_LIMIT as u64 + 1)]);
    assert_eq!(rich.text.chars().last(), Some('…'));
}

#[test]
fn what_is_displayed_is_bounded_and_the_value_is_kept() {
    let mut log = Log::new([0; 16], 100);
    for _ in 0..100 {
        let forms = vec![("image/png".to_owned(), vec![0; 1024 * 1024])];
        log.display(Rich { forms, ..Rich::default() });
    }
    log.result(Rich { text: "42".to_owned(), ..Rich::default() });
    let events = events(&log);
    assert!(log.size() < RICH_LIMIT + TEXT_LIMIT + 4096);
    let (_, Event::Display(last)) = &events[events.len() - 2] else { panic!() };
    assert!(last.text.contains("left out"), "{}", last.text);
    let (_, Event::Result(value)) = &events[events.len() - 1] else { panic!() };
    assert_eq!(value.text, "42");
}

proptest! {
    #[test]
    fn output_is_kept_in_order_up_to_the_limit(
        writes in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..50), 0_u64..20), 0..50),
        limit in 0_u64..500,
    ) {
        let mut log = Log::new([0; 16], limit);
        let mut now = Instant::now();
        let (mut expected, mut left, mut dropped) = (Vec::new(), limit, 0);
        for (is_stdout, bytes, pause) in writes {
            now += Duration::from_millis(pause);
            log.pass_on(now);
            let kept = bytes.len().min(usize::try_from(left).unwrap());
            left -= kept as u64;
            dropped += (bytes.len() - kept) as u64;
            if is_stdout {
                expected.extend_from_slice(&bytes[..kept]);
            }
            log.output(if is_stdout { Channel::Stdout } else { Channel::Stderr }, &bytes, now);
        }
        log.finish(Outcome::Succeeded, Duration::ZERO, false);
        prop_assert_eq!(stdout_of(&log), expected);
        let events = events(&log);
        for (index, (seq, _)) in events.iter().enumerate() {
            prop_assert_eq!(*seq, index as u64 + 1);
        }
        let Some((_, Event::Finished(finished))) = events.last() else { panic!() };
        prop_assert_eq!(finished.dropped.0 + finished.dropped.1, dropped);
    }
}

#[test]
fn a_flowing_log_lets_go_of_what_was_sent_and_waits_for_the_rest() {
    let mut log = Log::flowing([0; 16]);
    let mut now = Instant::now();
    log.started();
    let mut position = 0;
    for _ in 0..100 {
        let mut pieces = 0;
        while log.has_room() {
            now += GATHER;
            log.output(Channel::Stdout, &[b'x'; 60_000], now);
            pieces += 1;
        }
        assert!(log.size() < WINDOW + OUTPUT_EVENT + 4096 && pieces > 0, "{}", log.size());
        let sent = log.read(position, usize::MAX).len();
        position += sent;
        log.let_go(position);
        assert_eq!((log.size(), log.end()), (0, position));
        assert!(log.read(position, usize::MAX).is_empty());
    }
    now += GATHER;
    log.output(Channel::Stdout, b"last", now);
    log.finish(Outcome::Exited(0), Duration::ZERO, false);
    let whole = log.seq;
    assert_eq!(log.position_after(0), position, "what is gone is passed over");
    let (_, first) = frame::take::<FromAgent>(log.read(position, 1)).unwrap().unwrap();
    assert_eq!(log.position_after(whole - 2), position);
    assert_eq!(log.position_after(whole - 1), position + first);
    // Half of what there is.
    log.let_go(position + first);
    assert_eq!(log.position_after(whole - 1), position + first);
    assert_eq!(log.position_after(whole), log.end());
    assert_eq!(log.dropped, (0, 0));
}
