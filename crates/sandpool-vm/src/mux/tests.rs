use proptest::prelude::*;

use super::*;

/// Passes on all that one end has to say, in pieces of this size.
fn pass(from: &mut Mux, to: &mut Mux, piece: usize) -> Vec<Heard> {
    let said = from.output().to_vec();
    from.written(said.len());
    said.chunks(piece.max(1)).flat_map(|piece| to.hear(piece).unwrap()).collect()
}

#[test]
fn a_stream_is_opened_used_and_over() {
    let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
    let stream = keeper.open(b"D").unwrap();
    keeper.send(stream, b"hello");
    keeper.end(stream);
    let data = Heard::Data { stream, bytes: b"hello".to_vec() };
    let expected = [Heard::Open { stream, word: b"D".to_vec() }, data, Heard::End(stream)];
    assert_eq!(pass(&mut keeper, &mut machine, 3), expected);
    assert!(!machine.is_over(stream) && machine.room(stream) > 0);
    machine.send(stream, b"bye");
    machine.end(stream);
    assert!(machine.is_over(stream));
    assert_eq!(pass(&mut machine, &mut keeper, 100).len(), 2);
    assert!(keeper.is_over(stream) && keeper.room(stream) == 0);
}

#[test]
fn a_machine_says_that_it_waits_and_is_made_one_of_its_own() {
    let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
    let identity = Identity::here().unwrap();
    machine.up(&identity);
    machine.serves();
    machine.broken(&"é".repeat(MAX_WORDS));
    let heard = pass(&mut machine, &mut keeper, 7);
    assert!(
        matches!(heard.as_slice(), [Heard::Up(up), Heard::Serves, Heard::Broken(why)] if **up == identity && why.len() == MAX_WORDS),
        "{heard:?}"
    );
    let resume =
        Resume { seed: [7; 32], epoch_ns: 1_234_567_890_123_456_789, is_the_same: true, authority: "PEM".to_owned() };
    keeper.resume(&resume);
    assert_eq!(pass(&mut keeper, &mut machine, 1), [Heard::Resume(resume)]);
}

#[test]
fn what_stands_still_has_nothing_under_way_and_the_same_goes_on_where_another_begins_anew() {
    let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
    let stream = keeper.open(b"D").unwrap();
    pass(&mut keeper, &mut machine, 100);
    keeper.hush();
    keeper.send(stream, b"later");
    assert_eq!(pass(&mut keeper, &mut machine, 100), [Heard::Hush]);
    machine.send(stream, b"too");
    let identity = Identity::here().unwrap();
    machine.up(&identity);
    let heard = pass(&mut machine, &mut keeper, 100);
    assert_eq!(heard, [Heard::Up(Box::new(identity))], "what is said of streams waits");
    let resume = |is_the_same| Resume { seed: [7; 32], epoch_ns: 1, is_the_same, authority: String::new() };
    let data = |bytes: &[u8]| Heard::Data { stream, bytes: bytes.to_vec() };
    keeper.resume(&resume(true));
    assert_eq!(pass(&mut keeper, &mut machine, 100), [Heard::Resume(resume(true)), data(b"later")]);
    assert_eq!(pass(&mut machine, &mut keeper, 100), [data(b"too")]);
    // Another keeper knows nothing of these streams, and numbers its own from the beginning.
    keeper.hush();
    pass(&mut keeper, &mut machine, 100);
    machine.send(stream, b"lost");
    let mut keeper = Mux::new(Side::Keeper);
    keeper.resume(&resume(false));
    assert_eq!(keeper.open(b"D"), Some(stream));
    let expected = [Heard::Resume(resume(false)), Heard::Open { stream, word: b"D".to_vec() }];
    assert_eq!(pass(&mut keeper, &mut machine, 100), expected);
    assert_eq!(pass(&mut machine, &mut keeper, 100), []);
}

#[test]
fn one_that_nobody_reads_is_waited_for_and_holds_up_no_other() {
    let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
    let (full, other) = (keeper.open(b"D").unwrap(), keeper.open(b"P\x01\x02").unwrap());
    let mut sent = 0;
    while keeper.room(full) > 0 {
        let piece = vec![0; keeper.room(full)];
        keeper.send(full, &piece);
        sent += piece.len();
    }
    assert_eq!(sent, WINDOW as usize);
    keeper.send(other, b"through");
    let heard = pass(&mut keeper, &mut machine, 1000);
    assert!(heard.contains(&Heard::Data { stream: other, bytes: b"through".to_vec() }));
    machine.took(full, sent);
    assert_eq!(pass(&mut machine, &mut keeper, 100), [Heard::Credit(full)]);
    assert_eq!(keeper.room(full), MAX_PIECE);
}

#[test]
fn no_more_streams_than_an_agent_takes() {
    let mut keeper = Mux::new(Side::Keeper);
    assert!((0..STREAMS).all(|_| keeper.open(b"D").is_some()));
    assert_eq!(keeper.open(b"D"), None);
    keeper.reset(1);
    assert!(keeper.open(b"D").is_some());
}

#[test]
fn who_breaks_a_rule_is_told_apart() {
    let frame = |stream: u32, kind: u8, payload: &[u8]| {
        let mut mux = Mux::new(Side::Keeper);
        mux.say(stream, kind, payload);
        mux.output
    };
    let judged = |frames: &[Vec<u8>]| {
        let mut keeper = Mux::new(Side::Keeper);
        keeper.open(b"D");
        keeper.hear(&frames.concat())
    };
    let most = vec![0; MAX_PIECE];
    let flood = vec![frame(1, DATA, &most); WINDOW as usize / MAX_PIECE];
    assert_eq!(judged(&flood).map(|heard| heard.len()), Ok(flood.len()));
    let bad = [
        [flood, vec![frame(1, DATA, b"x")]].concat(),
        vec![frame(1, OPEN, b"D")],
        vec![frame(0, RESUME, &[0; 40])],
        vec![frame(1, UP, &[])],
        vec![frame(0, DATA, b"x")],
        vec![frame(1, DATA, b"")],
        vec![frame(1, END, b""), frame(1, DATA, b"x")],
        vec![frame(1, END, b""), frame(1, END, b"")],
        vec![frame(1, CREDIT, &1_u32.to_le_bytes())],
        vec![frame(1, CREDIT, &[1])],
        vec![frame(1, 9, b"")],
        vec![frame(0, BROKEN, &[b'x'; MAX_WORDS + 1])],
        vec![vec![1, 0, 0, 0, DATA, 1, 1, 0, 0]],
        vec![vec![1, 0, 0, 0, DATA, 0, 0xff, 0xff]],
    ];
    for frames in bad {
        assert!(judged(&frames).is_err(), "{:?}", frames.last());
    }
    assert_eq!(judged(&[frame(7, DATA, b"late")]), Ok(Vec::new()), "one that was reset here");
}

proptest! {
    #[test]
    fn any_bytes_are_heard_or_a_breach_and_never_kept_beyond_a_frame(
        pieces in proptest::collection::vec(proptest::collection::vec(0_u8..9, 0..64), 0..20)
    ) {
        for side in [Side::Keeper, Side::Machine] {
            let mut mux = Mux::new(side);
            mux.open(b"D");
            for piece in &pieces {
                if mux.hear(piece).is_err() {
                    break;
                }
                prop_assert!(mux.input.len() < HEADER + MAX_PIECE);
                prop_assert!(mux.streams.len() <= STREAMS);
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out(data in proptest::collection::vec(any::<u8>(), 1..200_000), piece in 1_usize..50_000) {
        let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
        let stream = keeper.open(b"D").unwrap();
        let (mut sent, mut came) = (0, Vec::new());
        while sent < data.len() || !keeper.output().is_empty() {
            let count = keeper.room(stream).min(data.len() - sent);
            if count > 0 {
                keeper.send(stream, &data[sent..sent + count]);
                sent += count;
            }
            for heard in pass(&mut keeper, &mut machine, piece) {
                if let Heard::Data { bytes, .. } = heard {
                    machine.took(stream, bytes.len());
                    came.extend(bytes);
                }
            }
            pass(&mut machine, &mut keeper, piece);
        }
        prop_assert!(came == data);
    }
}

#[test]
fn each_end_numbers_its_own_streams() {
    let (mut keeper, mut machine) = (Mux::new(Side::Keeper), Mux::new(Side::Machine));
    for address in ["127.0.0.1:80", "[2001:db8::1]:443", "198.18.3.4:53"] {
        let door = Door(address.parse().unwrap());
        assert_eq!(Door::decode(&door.encode()), Some(door));
        let (out, into) = (machine.open(&door.encode()).unwrap(), keeper.open(b"D").unwrap());
        assert_ne!(out, into);
        assert_eq!(pass(&mut machine, &mut keeper, 5), [Heard::Open { stream: out, word: door.encode().to_vec() }]);
        assert_eq!(pass(&mut keeper, &mut machine, 5), [Heard::Open { stream: into, word: b"D".to_vec() }]);
    }
    // A machine that opens what is the keeper's to open, or says nowhere.
    for (stream, word) in [(7, b"D".to_vec()), (OF_MACHINE + 9, b"D".to_vec()), (OF_MACHINE + 9, b"C123".to_vec())] {
        let mut keeper = Mux::new(Side::Keeper);
        let mut machine = Mux::new(Side::Machine);
        machine.say(stream, OPEN, &word);
        assert!(keeper.hear(machine.output()).is_err(), "{stream} {word:?}");
    }
    // One too many is reset, and no breach.
    let door = Door("127.0.0.1:80".parse().unwrap()).encode();
    let mut machine = Mux::new(Side::Machine);
    let mut keeper = Mux::new(Side::Keeper);
    let all: Vec<_> = std::iter::from_fn(|| machine.open(&door)).collect();
    assert_eq!(all.len(), STREAMS);
    assert_eq!(pass(&mut machine, &mut keeper, 4096).len(), STREAMS);
    machine.say(OF_MACHINE + 1000, OPEN, &door);
    assert_eq!(pass(&mut machine, &mut keeper, 4096), []);
    assert_eq!(keeper.output().len(), HEADER);
}
