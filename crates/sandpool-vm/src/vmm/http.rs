//! What VMMs answer over their API sockets: HTTP/1.1, and no more of that than they need.
//!
//! A VMM is the first that hostile code in a machine reaches. So its answer has a limit before it is parsed, and every length in it is
//! held against one.

/// The longest head of an answer, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;

/// The longest body of one, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// Headers of one.
const HEADERS: usize = 32;

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// At most [`MAX_BODY`] bytes.
    pub body: Vec<u8>,
}

/// What is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It is something else.
    #[error("what it answers is no HTTP: {0}")]
    NotHttp(String),
    /// It has no end.
    #[error("its answer is too long: its {part} may have {limit} bytes")]
    TooLong {
        /// Head or body.
        part: &'static str,
        /// What that may have.
        limit: usize,
    },
}

fn not_http(why: impl Into<String>) -> NoAnswer {
    NoAnswer::NotHttp(why.into())
}

/// Reads the only answer on a connection, from all that has come on it. `None` when more has to come.
///
/// # Errors
/// See [`NoAnswer`]. Nothing that comes later makes it better.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer>, NoAnswer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let begin = match response.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(NoAnswer::TooLong { part: "head", limit: MAX_HEAD }),
        Err(error) => return Err(not_http(error.to_string())),
    };
    let status = response.code.unwrap_or_default();
    if !(200..600).contains(&status) {
        return Err(not_http(format!("{status} is no status of an answer")));
    }
    let mut length = None;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(not_http("its body comes in pieces"));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let said = std::str::from_utf8(header.value).unwrap_or_default();
            let is_number = !said.is_empty() && said.bytes().all(|byte| byte.is_ascii_digit());
            if !is_number || length.is_some() {
                return Err(not_http("its length is none"));
            }
            // What is too long for a number is too long.
            length = Some(said.parse().unwrap_or(usize::MAX));
        }
    }
    let length = length.unwrap_or(0);
    if length > MAX_BODY {
        return Err(NoAnswer::TooLong { part: "body", limit: MAX_BODY });
    }
    let body = &bytes[begin..];
    if body.len() > length {
        return Err(not_http("more follows its end"));
    }
    Ok((body.len() == length).then(|| Answer { status, body: body.to_vec() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_answers_are_read() {
        let done = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(parse(done), Ok(Some(Answer { status: 204, body: Vec::new() })));
        let refused =
            b"HTTP/1.1 400 \r\ncontent-length: 20\r\nContent-Type: application/json\r\n\r\n{\"fault_message\":\"\"}";
        let body = b"{\"fault_message\":\"\"}".to_vec();
        assert_eq!(parse(refused), Ok(Some(Answer { status: 400, body })));
    }

    #[test]
    fn what_is_none_is_said() {
        let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'x'; MAX_HEAD]].concat();
        let many = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"X: y\r\n".repeat(HEADERS + 1), b"\r\n"].concat();
        let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
        for (bytes, why) in [
            (b"SSH-2.0-OpenSSH\r\n".as_slice(), "no HTTP"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "100 is no status"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "in pieces"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "length is none"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "length is none"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", "too long: its body"),
            (b"HTTP/1.1 204 OK\r\n\r\nHTTP/1.1 204 OK\r\n\r\n", "more follows"),
            (huge.as_bytes(), "too long: its body"),
            (&long, "too long: its head"),
            (&many, "no HTTP"),
        ] {
            let said = parse(bytes).expect_err(why).to_string();
            assert!(said.contains(why), "{said}, not {why}");
        }
    }

    proptest! {
        /// However an answer comes, it is read once it is whole, and not before.
        #[test]
        fn an_answer_is_read_at_its_end(status in 200_u16..600, body in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
            let mut bytes = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            bytes.extend(&body);
            prop_assert_eq!(parse(&bytes[..cut.index(bytes.len())]), Ok(None));
            prop_assert_eq!(parse(&bytes), Ok(Some(Answer { status, body })));
        }

        #[test]
        fn nothing_that_comes_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_HEAD), after in "[ -~\r\n]{0,400}") {
            let _ = parse(&bytes);
            let _ = parse(format!("HTTP/1.1 {after}").as_bytes());
        }
    }
}
