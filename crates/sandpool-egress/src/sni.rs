//! The name a TLS client asks for, read from its first message and from nothing else (EG4).
//!
//! The message may come in several records, and these in several pieces. What has been read is passed on unchanged: nothing
//! here ends a connection's secrecy.

use crate::host::Host;

/// The longest first message that is read, with its records' heads, in bytes. With keys of post-quantum exchanges they are
/// about 2 KiB.
pub const MAX_HELLO: usize = 16 * 1024;

/// Records that a first message may come in, at most: what is cut smaller hides something.
const MAX_RECORDS: usize = 16;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// What draft versions had.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The beginning of a first message.
    More,
    /// No first message of TLS.
    NotTls,
    /// A first message that no honest client sends.
    Bad,
    /// A whole first message.
    Hello(Hello),
}

/// A client's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name asked for; `None` when there is none.
    pub name: Option<Host>,
    /// It says that what it really asks for is encrypted.
    pub is_encrypted: bool,
}

/// Reads what a client has sent so far.
#[must_use]
pub fn read(bytes: &[u8]) -> Read {
    let mut message = Vec::new();
    let mut rest = bytes;
    for _ in 0..MAX_RECORDS {
        match *rest {
            [] => return Read::More,
            [kind, ..] if kind != HANDSHAKE => return if message.is_empty() { Read::NotTls } else { Read::Bad },
            [_, major, ..] if major != 3 => return if message.is_empty() { Read::NotTls } else { Read::Bad },
            [_, _, minor, ..] if minor > 4 => return Read::NotTls,
            [_, _, _, high, low, ref body @ ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length == 0 || length > MAX_HELLO {
                    return Read::Bad;
                }
                let (body, after) = body.split_at(length.min(body.len()));
                message.extend_from_slice(body);
                rest = after;
                match whole(&message) {
                    Ok(Some(hello)) => return parse(hello).map_or(Read::Bad, Read::Hello),
                    Ok(None) if body.len() < length && bytes.len() >= MAX_HELLO => return Read::Bad,
                    Ok(None) if body.len() < length => return Read::More,
                    Ok(None) => {}
                    Err(wrong) => return wrong,
                }
            }
            _ => return Read::More,
        }
    }
    Read::Bad
}

/// The body of the message, once all of it is there.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, Read> {
    match *message {
        [kind, ..] if kind != CLIENT_HELLO => Err(Read::Bad),
        [_, a, b, c, ref body @ ..] => {
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| Read::Bad)?;
            if length > MAX_HELLO {
                return Err(Read::Bad);
            }
            Ok(body.get(..length))
        }
        _ => Ok(None),
    }
}

/// A reader of what is left.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What follows, with its length in two bytes before it.
    fn block(&mut self) -> Option<Rest<'a>> {
        let length = self.short()?;
        self.take(length.into()).map(Rest)
    }
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut rest = Rest(body);
    rest.take(2 + 32)?;
    let session = rest.byte()?;
    rest.take(session)?;
    rest.block()?;
    let compressions = rest.byte()?;
    rest.take(compressions)?;
    let mut hello = Hello { name: None, is_encrypted: false };
    if rest.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = rest.block()?;
    if !rest.0.is_empty() {
        return None;
    }
    let mut has_name = false;
    while !extensions.0.is_empty() {
        let (kind, body) = (extensions.short()?, extensions.block()?);
        match kind {
            // One who sends two means that two readers see different ones.
            SERVER_NAME if has_name => return None,
            SERVER_NAME => {
                has_name = true;
                hello.name = Some(server_name(body)?);
            }
            ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => hello.is_encrypted = true,
            _ => {}
        }
    }
    Some(hello)
}

/// The one name of a list of names.
fn server_name(mut body: Rest<'_>) -> Option<Host> {
    let mut list = body.block()?;
    let kind = list.byte()?;
    let name = list.block()?;
    let alone = body.0.is_empty() && list.0.is_empty() && kind == 0;
    let text = std::str::from_utf8(name.0).ok()?;
    // RFC 6066: without a dot at its end.
    if alone && !text.ends_with('.') { Host::parse(text).ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [length.as_slice(), body].concat()
    }

    pub(crate) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().as_slice(), &block(body)].concat()
    }

    pub(crate) fn name(text: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &block(&[&[0], block(text).as_slice()].concat()))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([8; 32]);
        body.extend(block(&[0x13, 0x01, 0x13, 0x02]));
        body.extend([1, 0]);
        body.extend(block(extensions));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|piece| [&[22, 3, 1], block(piece).as_slice()].concat()).collect()
    }

    pub(crate) fn hello(extensions: &[u8]) -> Vec<u8> {
        records(&message(extensions), 16_000)
    }

    fn asked(text: &str) -> Read {
        Read::Hello(Hello { name: Some(Host::parse(text).unwrap()), is_encrypted: false })
    }

    #[test]
    fn the_name_is_read_however_the_message_is_cut() {
        let extensions = [extension(10, &[0, 2, 0, 29]), name(b"Example.COM"), extension(43, &[2, 3, 4])].concat();
        let message = message(&extensions);
        for size in [12, 40, 16_000] {
            let bytes = records(&message, size);
            for end in 0..bytes.len() {
                let found = read(&bytes[..end]);
                assert!(found == Read::More, "{size} {end} {found:?}");
            }
            assert_eq!(read(&bytes), asked("example.com"), "{size}");
            assert_eq!(read(&[bytes.as_slice(), b"more"].concat()), asked("example.com"), "{size}");
        }
    }

    #[test]
    fn a_message_cut_into_very_many_records_is_refused() {
        assert_eq!(read(&records(&message(&name(b"example.com")), 2)), Read::Bad);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for text in [
            b"".as_slice(),
            b"a.com\0",
            b"a.com\0.evil.com",
            b"a.com.",
            b"127.0.0.1",
            b"::1",
            b"a b",
            b"\xff\xfe",
            b"[::1]",
            b"a..b",
            &[b'a'; 300],
        ] {
            assert_eq!(read(&hello(&name(text))), Read::Bad, "{text:?}");
        }
        // Two names, in two extensions or in one.
        assert_eq!(read(&hello(&[name(b"a.com"), name(b"b.com")].concat())), Read::Bad);
        let two = [&[0], block(b"a.com").as_slice(), &[0], block(b"b.com").as_slice()].concat();
        assert_eq!(read(&hello(&extension(SERVER_NAME, &block(&two)))), Read::Bad);
        let another_kind = [&[1], block(b"a.com").as_slice()].concat();
        assert_eq!(read(&hello(&extension(SERVER_NAME, &block(&another_kind)))), Read::Bad);
    }

    #[test]
    fn a_hidden_name_is_seen_as_hidden() {
        let found = read(&hello(&[name(b"public.example"), extension(ENCRYPTED_CLIENT_HELLO, &[0; 40])].concat()));
        assert!(matches!(found, Read::Hello(Hello { name: Some(_), is_encrypted: true })));
        assert_eq!(read(&hello(&[])), Read::Hello(Hello { name: None, is_encrypted: false }));
    }

    #[test]
    fn what_is_not_tls_is_not_tls() {
        for bytes in
            [b"GET / HTTP/1.1\r\n".as_slice(), b"SSH-2.0-x", &[22, 2, 0, 0, 10], &[0x80, 0x2e, 1], &[23, 3, 3, 0, 1]]
        {
            assert_eq!(read(bytes), Read::NotTls, "{bytes:?}");
        }
        // A handshake, but not its beginning; and lengths that lie.
        assert_eq!(read(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Read::Bad);
        assert_eq!(read(&[22, 3, 1, 0, 4, 1, 255, 255, 255]), Read::Bad);
        assert_eq!(read(&[22, 3, 1, 0, 0]), Read::Bad);
        assert_eq!(read(&[22, 3, 1, 255, 255]), Read::Bad);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&hello(&bytes));
        }

        #[test]
        fn one_changed_byte_never_makes_another_name(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = hello(&name(b"example.com"));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Read::Hello(Hello { name: Some(host), .. }) = read(&bytes) {
                prop_assert!(host.as_str().len() <= 11);
            }
        }
    }
}
