use std::time::SystemTime;

use super::*;
use sandpool_core::ids::{ExecutionId, Identifier};
use sandpool_node::{ExecutionState, Outcome};

fn execution(result: Option<Rich>, displays: Vec<Rich>) -> Execution {
    Execution {
        id: ExecutionId([7; 16]),
        identifier: Identifier::parse("abcd").unwrap(),
        state: ExecutionState::Ended(Outcome::Succeeded),
        created: SystemTime::UNIX_EPOCH,
        stdout: Vec::new(),
        stderr: Vec::new(),
        dropped: (0, 0),
        result,
        displays,
        error: None,
        duration: None,
        queued: None,
        state_lost: false,
    }
}

fn rich(text: &str, scalar: Option<&str>) -> Rich {
    Rich { text: text.to_owned(), scalar: scalar.map(str::to_owned), ..Rich::default() }
}

fn figure(text: &str, data: &[u8]) -> Rich {
    Rich { forms: vec![("image/png".to_owned(), data.to_vec())], ..rich(text, None) }
}

fn told(result: Option<Rich>, displays: Vec<Rich>, manner: Manner) -> String {
    serde_json::to_string(&Value::of(&execution(result, displays), manner)).unwrap()
}

#[test]
fn item_7_values_are_what_azure_makes_of_them() {
    const PLAIN: Manner = Manner { jupyter_format: false, text_only: false };
    const JUPYTER: Manner = Manner { jupyter_format: true, text_only: false };
    const DOTNET: Manner = Manner { jupyter_format: false, text_only: true };
    let big = "123456789012345678901234567890";
    let nested = "{'a': [1,\n  2]}";
    for (text, scalar, plain, jupyter, dotnet) in [
        ("42", Some("42"), "42", "\"42\"", "\"42\""),
        (big, Some(big), big, "\"123456789012345678901234567890\"", "\"123456789012345678901234567890\""),
        ("1.5", Some("1.5"), "1.5", "\"1.5\"", "\"1.5\""),
        ("True", Some("true"), "true", "\"True\"", "\"true\""),
        ("'abc'", Some("\"abc\""), "\"abc\"", "\"'abc'\"", "\"abc\""),
        ("''", Some("\"\""), "\"\"", "\"''\"", "\"\""),
        ("nan", None, "null", "\"nan\"", "null"),
        ("NaN", None, "null", "\"NaN\"", "null"),
        ("'nan'", Some("\"nan\""), "\"nan\"", "\"'nan'\"", "\"nan\""),
        ("inf", None, "\"inf\"", "\"inf\"", "\"inf\""),
        ("None", Some("null"), "\"\"", "null", "\"\""),
        (nested, None, "\"{'a': [1,\\n  2]}\"", "\"{'a': [1,\\n  2]}\"", "\"{'a': [1,\\n  2]}\""),
        ("hostile", Some("{\"a\""), "\"hostile\"", "\"hostile\"", "\"hostile\""),
    ] {
        for (manner, expected) in [(PLAIN, plain), (JUPYTER, jupyter), (DOTNET, dotnet)] {
            assert_eq!(told(Some(rich(text, scalar)), Vec::new(), manner), expected, "{text} {manner:?}");
        }
    }
    for manner in [PLAIN, JUPYTER, DOTNET] {
        assert_eq!(told(None, Vec::new(), manner), "\"\"", "only prints");
    }
}

#[test]
fn item_7_a_figure_is_the_value_when_there_is_no_other() {
    let image = |data: &str| format!("{{\"type\":\"image\",\"format\":\"png\",\"base64_data\":\"{data}\"}}");
    let two = vec![figure("<Figure 1>", b"1"), figure("<Figure 2>", b"2"), rich("<table>", None)];
    let plain = Manner::default();
    assert_eq!(told(None, two.clone(), plain), image("Mg=="));
    assert_eq!(told(Some(rich("None", Some("null"))), two.clone(), plain), image("Mg=="));
    assert_eq!(told(Some(figure("<Image>", b"3")), two.clone(), plain), image("Mw=="));
    assert_eq!(told(Some(rich("42", Some("42"))), two.clone(), plain), "42");
    let dotnet = Manner { text_only: true, ..plain };
    assert_eq!(told(None, two.clone(), dotnet), serde_json::to_string(&image("Mg==")).unwrap());
    let all = outputs(&execution(Some(figure("<Image>", b"3")), two));
    let kinds: Vec<_> = all.iter().map(|output| output["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["display", "display", "display", "result"]);
    assert_eq!(all[1]["data"]["image/png"], "Mg==");
    assert_eq!(all[2]["data"]["text/plain"], "<table>");
    assert!(outputs(&execution(Some(rich("42", Some("42"))), Vec::new())).is_empty());
}

#[test]
fn streams_are_cut_between_characters_and_say_so() {
    for (bytes, dropped, limit, text, is_cut) in [
        (&b"abc"[..], 0, Some(3), "abc", false),
        (b"abcd", 0, Some(3), "abc...", true),
        ("äöü".as_bytes(), 0, Some(3), "äöü", false),
        ("äöüß".as_bytes(), 0, Some(3), "äöü...", true),
        (b"abcd", 0, None, "abcd", false),
        (b"ab\xc3", 5, None, "ab...", true),
        (b"ab\xff", 0, None, "ab\u{fffd}", false),
        (b"", 0, Some(3), "", false),
    ] {
        let stream = Stream::new(bytes.to_vec(), dropped, limit);
        assert_eq!((stream.text.as_str(), stream.is_cut), (text, is_cut), "{bytes:?}");
    }
}
