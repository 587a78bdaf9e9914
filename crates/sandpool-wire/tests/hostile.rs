//! Bytes of a hostile peer: whatever they are, they are a message or an error, within the limits.

use proptest::collection::vec;
use proptest::prelude::*;
use sandpool_wire::agent::{Answer, Call, Event, Finished, FromAgent, Outcome, Refusal, Rich, Runtime, ToAgent};
use sandpool_wire::frame::{self, FrameError, HEADER, MAX_FRAME};
use sandpool_wire::terminal::News;

fn rich() -> impl Strategy<Value = Rich> {
    (any::<String>(), any::<Option<String>>(), vec((".{0,20}", vec(any::<u8>(), 0..200)), 0..4))
        .prop_map(|(text, scalar, forms)| Rich { text, scalar, forms, dropped: vec![("x".to_owned(), u64::MAX)] })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Started),
        vec(any::<u8>(), 0..500).prop_map(Event::Stdout),
        vec(any::<u8>(), 0..500).prop_map(Event::Stderr),
        rich().prop_map(Event::Display),
        rich().prop_map(Event::Result),
        (any::<String>(), any::<u64>(), any::<bool>()).prop_map(|(why, duration_us, state_lost)| {
            Event::Finished(Finished { outcome: Outcome::Died(why), duration_us, dropped: (1, u64::MAX), state_lost })
        }),
    ]
}

fn from_agent() -> impl Strategy<Value = FromAgent> {
    prop_oneof![
        (any::<u32>(), any::<[u8; 16]>(), any::<String>()).prop_map(|(protocol, boot_id, version)| {
            FromAgent::Hello { protocol, boot_id, runtime: Runtime::Node, version }
        }),
        (any::<[u8; 16]>(), any::<u64>(), event()).prop_map(|(exec, seq, event)| FromAgent::Event { exec, seq, event }),
        (any::<u32>(), any::<String>())
            .prop_map(|(request, why)| { FromAgent::Reply { request, result: Err(Refusal::Failed(why)) } }),
        (any::<u32>(), vec(any::<u8>(), 0..500), any::<u64>()).prop_map(|(request, data, size)| {
            FromAgent::Reply { request, result: Ok(Answer::Data { data, size }) }
        }),
        (any::<[u8; 16]>(), any::<u64>(), vec(any::<u8>(), 0..500))
            .prop_map(|(exec, offset, data)| { FromAgent::Terminal { exec, news: News::Output { offset, data } } }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..2000)) {
        // As they come, and as a body under a header that fits.
        let _ = frame::take::<FromAgent>(&bytes);
        let _ = frame::take::<ToAgent>(&bytes);
        let _ = frame::decode::<FromAgent>(&bytes);
        let _ = frame::decode::<ToAgent>(&bytes);
    }

    #[test]
    fn a_message_with_one_byte_changed_is_a_message_or_an_error(
        message in from_agent(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = frame::encode(&message).unwrap();
        prop_assert_eq!(frame::take(&bytes).unwrap(), Some((message, bytes.len())));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(Some((other, used))) = frame::take::<FromAgent>(&bytes) {
            prop_assert!(used <= bytes.len());
            let again = frame::encode(&other).unwrap();
            prop_assert_eq!(frame::take(&again).unwrap(), Some((other, again.len())));
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_waited_for(message in from_agent(), at in any::<prop::sample::Index>()) {
        let bytes = frame::encode(&message).unwrap();
        prop_assert_eq!(frame::take::<FromAgent>(&bytes[..at.index(bytes.len())]).unwrap(), None);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_there_is_a_body(length in any::<u32>()) {
        let answer = frame::body_length(length.to_le_bytes());
        match usize::try_from(length).unwrap() {
            length if length <= MAX_FRAME => prop_assert_eq!(answer.unwrap(), length),
            expected => {
                let is_refused = matches!(answer, Err(FrameError::TooLong { length }) if length == expected);
                prop_assert!(is_refused);
            }
        }
    }
}

#[test]
fn a_length_inside_that_promises_more_than_there_is_holds_nothing() {
    // An event of standard output whose bytes number 2^60: nothing of that size may be set aside.
    let mut body =
        postcard::to_stdvec(&FromAgent::Event { exec: [0; 16], seq: 1, event: Event::Stdout(Vec::new()) }).unwrap();
    body.pop();
    body.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(frame::decode::<FromAgent>(&body), Err(FrameError::Malformed)));
}

#[test]
fn the_largest_pieces_fit_into_a_frame_and_larger_ones_do_not() {
    let write = |length: usize| ToAgent::Call {
        request: u32::MAX,
        call: Call::Write { upload: u32::MAX, data: vec![0; length] },
    };
    assert!(frame::encode(&write(sandpool_wire::agent::MAX_CHUNK)).unwrap().len() <= HEADER + MAX_FRAME);
    assert!(matches!(frame::encode(&write(MAX_FRAME)), Err(FrameError::TooLong { .. })));
}
