use super::*;
use proptest::prelude::*;

#[test]
fn a_path_is_below_the_root() {
    for (text, expected) in [
        ("", "/mnt/data"),
        ("/", "/mnt/data"),
        (".", "/mnt/data"),
        ("/mnt/data/", "/mnt/data"),
        ("mnt/data/a/b", "/mnt/data/a/b"),
        ("/a//b/", "/mnt/data/a/b"),
        ("app/x", "/mnt/data/app/x"),
        ("mnt/other", "/mnt/data/mnt/other"),
        ("..", "FilePathInvalid"),
        ("a/../b", "FilePathInvalid"),
        ("a.b", "FilePathInvalid"),
        ("a/./b", "FilePathInvalid"),
        ("a\0b", "FilePathInvalid"),
        ("a\\b", "FilePathInvalid"),
    ] {
        let told = Folder::parse(Some(text), Runtime::Python).map_or_else(|error| error.code.into(), |f| f.path);
        assert_eq!(told, expected, "{text:?}");
    }
    assert_eq!(Folder::parse(Some("/app/x"), Runtime::Shell).unwrap().path, "/app/x");
    assert_eq!(Folder::parse(Some("/mnt/data/a/b"), Runtime::Shell).unwrap().shown(), "a/b");
    assert_eq!(Folder::parse(None, Runtime::Node).unwrap().shown(), ".");
}

#[test]
fn item_4_only_the_last_part_of_a_sent_name_counts() {
    for (sent, expected) in [
        ("/mnt/data/report.csv", "report.csv"),
        ("a/b/c.txt", "c.txt"),
        ("C:\\Users\\me\\c.txt", "c.txt"),
        ("../../etc/passwd", "passwd"),
        ("Überblick (1) 50%^@$&=;,#.txt", "Überblick (1) 50%^@$&=;,#.txt"),
        ("名前.csv", "名前.csv"),
        ("e\u{301}.txt", "e\u{301}.txt"),
        (".hidden", ".hidden"),
        ("a*b", "FileNameInvalid"),
        ("a:b", "FileNameInvalid"),
        ("a\nb", "FileNameInvalid"),
        ("a\u{202e}b", "FileNameInvalid"),
        ("a/", "FileNameInvalid"),
        ("..", "FileNameInvalid"),
        ("", "FileNameInvalid"),
    ] {
        let told = new_name(sent).unwrap_or_else(|error| error.code.into());
        assert_eq!(told, expected, "{sent:?}");
    }
    assert!(new_name(&"x".repeat(255)).is_ok());
    assert!(new_name(&"x".repeat(256)).is_err());
}

#[test]
fn a_file_in_a_path_is_one_name_or_a_whole_path_below_the_root() {
    for (path, segments, expected) in [
        ("sub", vec!["a.txt"], "/mnt/data/sub/a.txt"),
        ("", vec!["mnt", "data", "a.txt"], "/mnt/data/a.txt"),
        ("", vec!["sub.d", "a.txt"], "/mnt/data/sub.d/a.txt"),
        ("", vec!["/mnt/data/a.txt"], "/mnt/data/a.txt"),
        ("", vec!["a+[b]~.txt"], "/mnt/data/a+[b]~.txt"),
        ("", vec!["a/b"], "FileNameInvalid"),
        ("", vec!["..", "a"], "FileNameInvalid"),
        ("", vec![".."], "FileNameInvalid"),
        ("", vec!["a\0"], "FileNameInvalid"),
    ] {
        let segments: Vec<_> = segments.iter().map(|segment| segment.as_bytes().to_vec()).collect();
        let folder = Folder::parse(Some(path), Runtime::Python).unwrap();
        let told = existing(folder, &segments).map_or_else(|e| e.code.into(), |(f, name)| f.file(&name));
        assert_eq!(told, expected, "{path} {segments:?}");
    }
}

#[test]
fn text_is_text_whatever_it_is_about() {
    for (name, begins, expected) in [
        ("a.csv", None, "text/plain; charset=utf-8"),
        ("plot.png", None, "image/png"),
        ("unknown", None, "application/octet-stream"),
        ("unknown", Some(&b"caf\xc3"[..]), "text/plain; charset=utf-8"),
        ("unknown", Some(&b"caf\xff\xff"[..]), "application/octet-stream"),
        ("unknown", Some(&b"a\0b"[..]), "application/octet-stream"),
    ] {
        assert_eq!(content_type(name, begins), expected, "{name}");
    }
}

proptest! {
    #[test]
    fn no_path_and_no_name_leaves_the_root(path in ".{0,40}|[./a]{0,12}", name in ".{0,40}|[./a]{0,12}") {
        let is_inside = |path: &str| {
            path.starts_with("/mnt/data/") && !path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."))
        };
        if let Ok(folder) = Folder::parse(Some(&path), Runtime::Python) {
            if let Ok(name) = new_name(&name) {
                prop_assert!(is_inside(&folder.file(&name)));
            }
            if let Ok((folder, name)) = existing(folder, &[name.into_bytes()]) {
                prop_assert!(is_inside(&folder.file(&name)));
            }
        }
    }
}
