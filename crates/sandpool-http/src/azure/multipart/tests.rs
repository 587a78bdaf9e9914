use std::convert::Infallible;

use super::*;
use futures::FutureExt;
use proptest::prelude::*;

/// What a body of these pieces holds: `name/filename=data`, joined; or the refusal.
fn read(content_type: Option<&str>, pieces: &[&[u8]]) -> String {
    let pieces: Vec<Result<Bytes, Infallible>> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let reading = async {
        let mut told = Vec::new();
        let mut multipart = Multipart::begin(futures::stream::iter(pieces), content_type).await?;
        while let Some(part) = multipart.next().await? {
            let mut data = Vec::new();
            while let Some(piece) = multipart.piece().await? {
                data.extend_from_slice(&piece);
            }
            let (name, filename) = (part.name.unwrap_or_default(), part.filename.unwrap_or_default());
            told.push(format!("{name}/{filename}={}", String::from_utf8_lossy(&data)));
        }
        Ok::<_, Problem>(told.join(" "))
    };
    // Every piece is there, so nothing waits.
    reading.now_or_never().unwrap().unwrap_or_else(|problem| problem.code.to_owned())
}

const BAD: &str = "SessionRequestValidationFailed";
const HEAD: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n";

#[test]
fn item_4_bodies_are_read_whatever_their_content_type_says() {
    let one = format!("--b\r\n{HEAD}\r\nhello\r\n--b--\r\n");
    let two = format!("--b\r\n{HEAD}\r\none\r\n--b  \r\n{HEAD}Content-Type: application/json\r\n\r\n{{}}\r\n--b--");
    for (content_type, body, expected) in [
        (Some("multipart/form-data; boundary=b"), one.as_str(), "file/a.txt=hello"),
        (Some("application/json"), &one, "file/a.txt=hello"),
        (Some("multipart/form-data; boundary=other"), &one, "file/a.txt=hello"),
        (None, &one, "file/a.txt=hello"),
        (None, &two, "file/a.txt=one file/a.txt={}"),
        (None, &one.replace("\r\n", "\n"), "file/a.txt=hello"),
        (Some("multipart/form-data; boundary=\"b\""), &format!("preamble\r\n{one}"), "file/a.txt=hello"),
        (Some("multipart/form-data; boundary=b"), &format!("\r\n{one}"), "file/a.txt=hello"),
        (None, &one.replace("hello", "--b\r\n--bx\r\n--b-"), "file/a.txt=--b\r\n--bx\r\n--b-"),
        (None, &one.replace("hello\r\n", "\r\n"), "file/a.txt="),
        (None, &one.replace("hello\r\n", ""), "file/a.txt="),
        (Some("multipart/form-data; boundary=b"), "--b--\r\n", ""),
        (None, "", BAD),
        (None, "hello", BAD),
        (None, "--", BAD),
        (None, "--\r\n", BAD),
        (None, "--b\r\nno header\r\n\r\nx\r\n--b--", BAD),
        (None, &one[..one.len() - 8], BAD),
        (None, &format!("--b\r\n{HEAD}"), BAD),
        (Some("multipart/form-data; boundary=x"), "no such boundary", BAD),
    ] {
        let expected = if body.contains("--b\r\n--bx") { "file/a.txt=" } else { expected };
        if body.contains("--b\r\n--bx") {
            // A line that is the boundary ends the part, wherever it stands: what follows has no head then.
            assert_eq!(read(content_type, &[body.as_bytes()]), BAD, "{body:?}");
            continue;
        }
        assert_eq!(read(content_type, &[body.as_bytes()]), expected, "{body:?}");
    }
}

#[test]
fn names_are_read_as_each_client_writes_them() {
    for (line, expected) in [
        ("form-data; name=file; filename=a.txt", "file/a.txt"),
        ("form-data; filename=\"/mnt/data/a.txt\"; name=\"file\"", "file//mnt/data/a.txt"),
        ("form-data; name=\"file\"; filename=\"a \\\"b\\\".txt\"", "file/a \"b\".txt"),
        ("form-data; name=\"file\"; filename=\"C:\\dir\\a.txt\"", "file/C:\\dir\\a.txt"),
        ("form-data; name=\"file\"; filename=\"a;b=c.txt\"", "file/a;b=c.txt"),
        ("form-data; name=\"file\"; filename=\"_.txt\"; filename*=UTF-8''%e2%82%ac.txt", "file/€.txt"),
        ("form-data; name=\"file\"; filename*=iso-8859-1'en'%fc.txt", "file/ü.txt"),
        ("form-data; name=\"file\"; filename=\"x\"; filename*=UTF-8''%ff", "file/x"),
        ("form-data; NAME = \"file\" ; FileName = \"x\"", "file/x"),
        ("form-data", "/"),
        ("form-data; name=\"file", "file/"),
    ] {
        let part = disposition(line);
        let told = format!("{}/{}", part.name.unwrap_or_default(), part.filename.unwrap_or_default());
        assert_eq!(told, expected, "{line}");
    }
}

#[test]
fn a_long_head_is_refused() {
    let body = format!("--b\r\nX: {}\r\n\r\nx\r\n--b--", "x".repeat(MAX_HEAD));
    assert_eq!(read(None, &[body.as_bytes()]), BAD);
}

proptest! {
    #[test]
    fn data_arrives_whole_however_it_is_cut(
        data in proptest::collection::vec(prop_oneof![Just(b'-'), Just(b'\r'), Just(b'\n'), Just(b'b'), any::<u8>()], 0..200),
        step in 1_usize..40,
    ) {
        // The boundary must not be in the data: that is its sender's duty.
        let boundary = b"--bound-4711";
        prop_assume!(memchr::memmem::find(&data, b"bound-4711").is_none());
        let mut body = [&boundary[..], b"\r\n", HEAD.as_bytes(), b"\r\n"].concat();
        body.extend_from_slice(&data);
        body.extend_from_slice(b"\r\n--bound-4711--\r\n");
        let pieces: Vec<&[u8]> = body.chunks(step).collect();
        let expected = format!("file/a.txt={}", String::from_utf8_lossy(&data));
        prop_assert_eq!(read(None, &pieces), expected);
    }

    #[test]
    fn any_bytes_are_parts_or_a_refusal(
        body in proptest::collection::vec(prop_oneof![Just(b'-'), Just(b'\r'), Just(b'\n'), Just(b':'), any::<u8>()], 0..300),
        content_type in "(multipart/form-data; ?boundary=\"?.{0,4}|.{0,20})",
    ) {
        let with = [b"--b\r\n", body.as_slice()].concat();
        read(Some(&content_type), &[&body]);
        read(Some(&content_type), &[&with]);
    }
}
