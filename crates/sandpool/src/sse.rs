//! Server-sent events, read from pieces of a body.

/// The longest event that is accepted, in bytes. A result carries images of some megabytes in base64.
const MAX_EVENT: usize = 64 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its id: the number to go on from.
    pub(crate) id: Option<u64>,
    /// Its name.
    pub(crate) name: String,
    /// Its data; lines are joined by newlines.
    pub(crate) data: String,
}

/// An event is longer than [`MAX_EVENT`].
#[derive(Debug, thiserror::Error)]
#[error("an event of the server is longer than {MAX_EVENT} bytes")]
pub(crate) struct TooLong;

/// Splits a body into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
}

impl Parser {
    /// Takes in a piece of the body, and appends the events it completes.
    pub(crate) fn push(&mut self, piece: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            let line = std::mem::take(&mut self.line);
            self.take_line(line.strip_suffix(b"\r").unwrap_or(&line), events);
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.event.data.len() > MAX_EVENT { Err(TooLong) } else { Ok(()) }
    }

    fn take_line(&mut self, line: &[u8], events: &mut Vec<Event>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return;
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = value.parse().ok(),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // Comments keep the connection alive; other fields are none of ours.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = ": hello\n\nid: 1\nevent: started\ndata: {}\n\nid: 2\r\nevent: stdout\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nid: 3\n\nevent: cut";

    #[test]
    fn events_are_the_same_however_the_body_is_cut() {
        let mut whole = Vec::new();
        Parser::default().push(BODY.as_bytes(), &mut whole).unwrap();
        assert_eq!(
            whole,
            [
                Event { id: Some(1), name: "started".into(), data: "{}".into() },
                Event { id: Some(2), name: "stdout".into(), data: "{\"a\":\n1}".into() },
            ]
        );
        for size in 1..BODY.len() {
            let (mut parser, mut events) = (Parser::default(), Vec::new());
            for piece in BODY.as_bytes().chunks(size) {
                parser.push(piece, &mut events).unwrap();
            }
            assert_eq!(events, whole, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        assert!((0..65).any(|_| parser.push(&piece, &mut events).is_err()));
    }
}
