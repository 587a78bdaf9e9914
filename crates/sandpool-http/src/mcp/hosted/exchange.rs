//! Who hears what a server says: the rules, without a connection.
//!
//! A server on a pipe says everything in one stream; over HTTP each answer belongs to the request that asked for it, and all else
//! has to be told where somebody listens:
//!
//! ```text
//! an answer           -> the call that it answers
//! progress            -> the call whose token it names
//! anything else       -> the newest call that listens, else the standing stream (GET), which may come later
//! ```

use super::message::{Id, Kind};

/// Calls of one session that wait for their answers.
pub(super) const MOST: usize = 64;

/// One call, by the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CallId(pub(super) u64);

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    /// To this call, which it answers: nothing follows there.
    Answers(CallId),
    /// To this call, on its way to an answer.
    To(CallId),
    /// To the standing stream.
    Standing,
    /// To nobody: nobody waits for it.
    Nowhere,
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotTaken {
    #[error("a request with this id waits for its answer already")]
    SameId,
    #[error("{MOST} requests wait for their answers already")]
    TooMany,
}

/// The calls of one session.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    last: u64,
    /// Oldest first.
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    call: CallId,
    id: Id,
    progress: Option<Id>,
    /// It takes more than its answer.
    listens: bool,
}

impl Exchange {
    /// A client asks. `listens`: it takes other messages too while it waits.
    pub(super) fn ask(&mut self, id: Id, progress: Option<Id>, listens: bool) -> Result<CallId, NotTaken> {
        if self.calls.iter().any(|call| call.id == id) {
            return Err(NotTaken::SameId);
        }
        if self.calls.len() >= MOST {
            return Err(NotTaken::TooMany);
        }
        self.last += 1;
        let call = CallId(self.last);
        self.calls.push(Call { call, id, progress, listens });
        Ok(call)
    }

    /// The client of a call has gone. Its answer, when it comes, is for nobody.
    pub(super) fn leave(&mut self, call: CallId) {
        if let Some(call) = self.calls.iter_mut().find(|other| other.call == call) {
            call.listens = false;
            call.progress = None;
        }
    }

    /// A call was never passed on.
    pub(super) fn forget(&mut self, call: CallId) {
        self.calls.retain(|other| other.call != call);
    }

    /// A client takes its request back: the call that it was, if it waits.
    pub(super) fn cancel(&mut self, id: &Id) -> Option<CallId> {
        let at = self.calls.iter().position(|call| call.id == *id)?;
        Some(self.calls.remove(at).call)
    }

    /// The server said something.
    pub(super) fn hear(&mut self, kind: &Kind) -> Goes {
        match kind {
            Kind::Response { id, .. } => {
                let at = self.calls.iter().position(|call| Some(&call.id) == id.as_ref());
                at.map_or(Goes::Nowhere, |at| Goes::Answers(self.calls.remove(at).call))
            }
            Kind::Notification { progress: Some(token), .. } => {
                let call = self.calls.iter().find(|call| call.progress.as_ref() == Some(token));
                call.filter(|call| call.listens).map_or(Goes::Nowhere, |call| Goes::To(call.call))
            }
            Kind::Notification { .. } | Kind::Request { .. } => {
                let call = self.calls.iter().rev().find(|call| call.listens);
                call.map_or(Goes::Standing, |call| Goes::To(call.call))
            }
        }
    }

    /// The server has ended: the calls that will have no answer.
    pub(super) fn end(&mut self) -> Vec<(CallId, Id)> {
        self.calls.drain(..).map(|call| (call.call, call.id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::parse;
    use super::*;

    /// What happens, line by line, and where it goes: `ask ID [token T] [deaf]`, `leave N`, or what a server says.
    fn check(story: &str) {
        let mut exchange = Exchange::default();
        let id = |text: &str| match parse(&format!(r#"{{"jsonrpc":"2.0","id":{text},"result":0}}"#)).unwrap().kind {
            Kind::Response { id: Some(id), .. } => id,
            other => panic!("{other:?}"),
        };
        for line in story.trim().lines() {
            let (happens, expected) = line.trim().split_once(" -> ").unwrap();
            let words: Vec<_> = happens.split(' ').collect();
            let found = match words[..] {
                ["ask", one, ref more @ ..] => {
                    let token = more.first().filter(|word| **word == "token").map(|_| id(more[1]));
                    match exchange.ask(id(one), token, !more.contains(&"deaf")) {
                        Ok(CallId(number)) => format!("call {number}"),
                        Err(error) => format!("{error:?}"),
                    }
                }
                ["cancel", one] => match exchange.cancel(&id(one)) {
                    Some(CallId(number)) => format!("ends {number}"),
                    None => "nothing".to_owned(),
                },
                ["leave", number] => {
                    exchange.leave(CallId(number.parse().unwrap()));
                    "ok".to_owned()
                }
                ["end"] => format!("{:?}", exchange.end().iter().map(|(call, _)| call.0).collect::<Vec<_>>()),
                ref says => {
                    let text = match says {
                        ["answer", one] => format!(r#"{{"jsonrpc":"2.0","id":{one},"result":0}}"#),
                        ["progress", token] => format!(
                            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
                        ),
                        ["log"] => r#"{"jsonrpc":"2.0","method":"notifications/message"}"#.to_owned(),
                        ["elicit"] => r#"{"jsonrpc":"2.0","id":0,"method":"elicitation/create"}"#.to_owned(),
                        other => panic!("{other:?}"),
                    };
                    match exchange.hear(&parse(&text).unwrap().kind) {
                        Goes::Answers(CallId(number)) => format!("answers {number}"),
                        Goes::To(CallId(number)) => format!("to {number}"),
                        Goes::Standing => "standing".to_owned(),
                        Goes::Nowhere => "nowhere".to_owned(),
                    }
                }
            };
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn answers_find_their_calls_and_all_else_who_listens() {
        check(
            r#"
            log -> standing
            elicit -> standing
            ask 1 token 5 -> call 1
            ask "1" token "5" -> call 2
            progress 5 -> to 1
            progress "5" -> to 2
            progress 6 -> nowhere
            elicit -> to 2
            answer "1" -> answers 2
            answer "1" -> nowhere
            progress "5" -> nowhere
            log -> to 1
            answer 1 -> answers 1
            log -> standing
            "#,
        );
    }

    #[test]
    fn who_has_gone_or_takes_an_answer_only_hears_nothing_else() {
        check(
            r"
            ask 1 token 1 -> call 1
            ask 2 deaf -> call 2
            log -> to 1
            leave 1 -> ok
            log -> standing
            progress 1 -> nowhere
            ask 1 -> SameId
            answer 1 -> answers 1
            ask 1 -> call 3
            ask 4 -> call 4
            cancel 4 -> ends 4
            cancel 4 -> nothing
            answer 4 -> nowhere
            end -> [2, 3]
            answer 2 -> nowhere
            ",
        );
    }

    #[test]
    fn calls_are_bounded() {
        let mut exchange = Exchange::default();
        let id = |number: usize| match parse(&format!(r#"{{"jsonrpc":"2.0","id":{number},"result":0}}"#)).unwrap().kind
        {
            Kind::Response { id: Some(id), .. } => id,
            other => panic!("{other:?}"),
        };
        for number in 0..MOST {
            exchange.ask(id(number), None, true).unwrap();
        }
        assert_eq!(exchange.ask(id(MOST), None, true), Err(NotTaken::TooMany));
        exchange.forget(CallId(1));
        assert!(exchange.ask(id(MOST), None, true).is_ok());
    }
}
