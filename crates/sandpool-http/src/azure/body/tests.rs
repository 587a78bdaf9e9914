use super::*;
use proptest::prelude::*;

fn told_input(stdin: &Stdin) -> String {
    match stdin {
        Stdin::Bytes(bytes) => format!(" < {}", String::from_utf8_lossy(bytes)),
        _ => String::new(),
    }
}

fn told(wanted: &Wanted) -> String {
    let mut told = match &wanted.work {
        Work::Code { code, fresh } => format!("code {code}{}", if *fresh { " (fresh)" } else { "" }),
        Work::Shell { command, stdin } => format!("shell {command}{}", told_input(stdin)),
        Work::Argv { argv, stdin } => format!("argv {}{}", argv.join("|"), told_input(stdin)),
        Work::Terminal { .. } | Work::Service { .. } => "a terminal or a service".to_owned(),
    };
    if wanted.is_asynchronous {
        told.push_str(" async");
    }
    if let Some(timeout) = wanted.timeout {
        told = format!("{told} within {timeout:?}");
    }
    if let Some(length) = wanted.output_length {
        told = format!("{told} {length} characters");
    }
    if wanted.jupyter_format {
        told.push_str(" as Jupyter");
    }
    told
}

fn read(runtime: Runtime, body: &str) -> String {
    match Fields::parse(body.as_bytes()).and_then(|fields| fields.wanted(runtime)) {
        Ok(wanted) => told(&wanted),
        Err(problem) => match (problem.code, problem.target) {
            ("SessionRequestValidationFailed", Some(target)) => format!("not {target}"),
            (code, _) => format!("{} {code}", problem.status.as_u16()),
        },
    }
}

const MISSING: &str = "400 SessionPropertiesMissing";

#[test]
fn item_3_code_is_found_in_every_envelope() {
    for (body, expected) in [
        (r#"{"code":"6 * 7"}"#, "code 6 * 7"),
        (r#"{"properties":{"code":"1"}}"#, "code 1"),
        (r#"{"Properties":{"CODE":"1","codeInputType":"inline","ExecutionType":"synchronous"}}"#, "code 1"),
        (r#"{"properties":{"pythonCode":"1","identifier":"abcd"}}"#, "code 1"),
        (r#"{"pythonCode":"1","code":"2"}"#, "code 2"),
        (r#"{"code":"1","properties":null}"#, "code 1"),
        (r#"{"code":"1","properties":{"code":"2"}}"#, "code 2"),
        (r#"{"code":"1","timeoutInSeconds":60,"executionType":"Asynchronous"}"#, "code 1 async within 60s"),
        (r#"{"code":"1","timeoutInSeconds":60.0,"outputStreamsMaxLength":9}"#, "code 1 within 60s 9 characters"),
        (r#"{"code":"1","useEmptyKernel":true,"returnJupyterFormat":true}"#, "code 1 (fresh) as Jupyter"),
        (r#"{"code":"1","returnJupyterFormatExecutionResult":true}"#, "code 1 as Jupyter"),
        (r#"{"code":"NiAqIDc=","codeInputType":"InlineBase64"}"#, "code 6 * 7"),
        (r#"{"code":"NiAq\nIDc","codeInputType":"inlinebase64"}"#, "code 6 * 7"),
        (r#"{"code":"Pz8_","codeInputType":"InlineBase64"}"#, "code ???"),
        (r#"{"code":"1","codeInputType":"InlineText"}"#, "code 1"),
        (r#"{"code":"1","x":{"code":"2"},"y":[[[]]],"timeoutInSeconds":null}"#, "code 1"),
        (r#"{"code":"1","shellCommand":"ls"}"#, "code 1"),
        (r#"{"code":""}"#, "code "),
        ("\u{feff}{\"code\":\"1\"}", "code 1"),
    ] {
        assert_eq!(read(Runtime::Python, body), expected, "{body}");
    }
}

#[test]
fn commands_are_found_and_what_belongs_to_code_is_ignored_beside_them() {
    for (body, expected) in [
        (r#"{"shellCommand":"uname -s && id -u"}"#, "shell uname -s && id -u"),
        (r#"{"shellCommand":"cat","stdin":"a"}"#, "shell cat < a"),
        (r#"{"properties":{"shellCommand":"ls","codeInputType":"x","executionType":"Synchronous"}}"#, "shell ls"),
        (r#"{"shellCommand":"ls","code":"1","timeoutInSeconds":600}"#, "shell ls within 600s"),
        (r#"{"execCommandAndArgs":["/usr/bin/env","python3","-V"]}"#, "argv /usr/bin/env|python3|-V"),
        (r#"{"execCommandAndArgs":null,"shellCommand":""}"#, "shell "),
        (r#"{"execCommandAndArgs":["a"],"shellCommand":"ls"}"#, "not execCommandAndArgs"),
        (r#"{"execCommandAndArgs":[]}"#, "not execCommandAndArgs"),
        (r#"{"execCommandAndArgs":["a",1]}"#, "not execCommandAndArgs"),
        (r#"{"execCommandAndArgs":["a\u0000"]}"#, "not execCommandAndArgs"),
        (r#"{"execCommandAndArgs":"ls"}"#, "not execCommandAndArgs"),
        (r#"{"shellCommand":["ls"]}"#, "not shellCommand"),
        (r#"{"code":"1"}"#, MISSING),
        ("", MISSING),
    ] {
        assert_eq!(read(Runtime::Shell, body), expected, "{body}");
    }
    let problem = Fields::parse(br#"{"code":"1"}"#).unwrap().wanted(Runtime::Shell).unwrap_err();
    assert!(problem.message.contains("shellCommand") && problem.message.contains("PythonLTS"), "{}", problem.message);
}

#[test]
fn what_cannot_be_used_is_named() {
    for (body, expected) in [
        ("{}", MISSING),
        (r#"{"properties":{}}"#, MISSING),
        (r#"{"code":null}"#, MISSING),
        (r#"{"shellCommand":"ls"}"#, MISSING),
        ("{", "not body"),
        ("[]", "not body"),
        (r#"{"code":"1"} x"#, "not body"),
        (r#"{"properties":[]}"#, "not body"),
        (r#"{"code":1}"#, "not code"),
        (r#"{"code":"%","codeInputType":"InlineBase64"}"#, "not code"),
        (r#"{"code":"/w==","codeInputType":"InlineBase64"}"#, "not code"),
        (r#"{"code":"1","codeInputType":"File"}"#, "not codeInputType"),
        (r#"{"code":"1","executionType":"Later"}"#, "not executionType"),
        (r#"{"code":"1","timeoutInSeconds":0}"#, "not timeoutInSeconds"),
        (r#"{"code":"1","timeoutInSeconds":-5}"#, "not timeoutInSeconds"),
        (r#"{"code":"1","timeoutInSeconds":1.5}"#, "not timeoutInSeconds"),
        (r#"{"code":"1","timeoutInSeconds":"60"}"#, "not timeoutInSeconds"),
        (r#"{"code":"1","timeoutInSeconds":2147483648}"#, "not timeoutInSeconds"),
        (r#"{"code":"1","outputStreamsMaxLength":0}"#, "not outputStreamsMaxLength"),
        (r#"{"code":"1","useEmptyKernel":"yes"}"#, "not useEmptyKernel"),
    ] {
        assert_eq!(read(Runtime::Python, body), expected, "{body}");
    }
    let long = format!("{{\"code\":\"{}\"}}", "x".repeat(MAX_CODE + 1));
    assert_eq!(read(Runtime::Node, &long), "413 RequestBodyTooLarge");
}

#[test]
fn the_identifier_may_be_in_the_body() {
    let read = |body: &str| Fields::parse(body.as_bytes()).unwrap().identifier();
    assert_eq!(read(r#"{"properties":{"identifier":"abcd"}}"#).unwrap().unwrap().as_str(), "abcd");
    assert_eq!(read(r#"{"identifier":"a+b&"}"#).unwrap().unwrap().as_str(), "a+b&");
    assert_eq!(read(r#"{"identifier":null}"#).unwrap(), None);
    assert_eq!(read(r#"{"identifier":"abc"}"#).unwrap_err().code, "InvalidLengthOfSessionIdentifier");
}

proptest! {
    #[test]
    fn any_bytes_are_a_body_or_a_refusal(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Fields::parse(&body).and_then(|fields| fields.wanted(Runtime::Python));
    }

    #[test]
    fn code_arrives_as_it_was_sent(code in ".{0,200}") {
        let body = serde_json::json!({ "properties": { "code": code } }).to_string();
        let wanted = Fields::parse(body.as_bytes()).unwrap().wanted(Runtime::Python).unwrap();
        prop_assert_eq!(wanted.work, Work::Code { code, fresh: false });
    }
}
