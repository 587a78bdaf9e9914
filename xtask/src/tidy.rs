//! `cargo xtask tidy`: the house rules that a compiler cannot see. Each rule is one function over the files of the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, root};

/// The longest source file, in lines. A longer one has more than one job.
const MAX_LINES: usize = 1_200;

/// The largest committed file, in bytes. Lock files are the largest ones.
const MAX_BYTES: usize = 1 << 20;

/// Licences that a binary under Apache-2.0 may contain.
const LICENCES: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that may be there in more than one version, at most. Each costs build time; the budget only ever shrinks.
const MAX_DUPLICATES: usize = 30;

/// The arrows between rooms: a crate and the only rooms it may enter.
const ARROWS: [(&str, &[&str]); 18] = [
    ("sandpool-core", &[]),
    ("sandpool-wire", &[]),
    ("sandpool-sys", &[]),
    ("sandpool-telemetry", &[]),
    ("sandpool-driver", &["sandpool-core", "sandpool-wire"]),
    ("sandpool-walls", &["sandpool-core", "sandpool-sys"]),
    ("sandpool-vm", &["sandpool-core", "sandpool-wire", "sandpool-sys", "sandpool-walls"]),
    ("sandpool-agent", &["sandpool-wire", "sandpool-sys", "sandpool-walls", "sandpool-vm"]),
    ("sandpool-attack", &[]),
    ("sandpool-console", &[]),
    ("sandpool-image", &[]),
    ("sandpool-bench", &["sandpool-sys"]),
    ("sandpool-egress", &["sandpool-core", "sandpool-wire", "sandpool-sys"]),
    (
        "sandpool-process",
        &["sandpool-core", "sandpool-wire", "sandpool-driver", "sandpool-sys", "sandpool-walls", "sandpool-vm"],
    ),
    ("sandpool-store", &["sandpool-core"]),
    ("sandpool-node", &["sandpool-core", "sandpool-wire", "sandpool-driver", "sandpool-store", "sandpool-telemetry"]),
    ("sandpool-objects", &["sandpool-core", "sandpool-wire", "sandpool-egress", "sandpool-image", "sandpool-node"]),
    (
        "sandpool-http",
        &["sandpool-console", "sandpool-core", "sandpool-node", "sandpool-objects", "sandpool-telemetry"],
    ),
];

/// A file of the tree, by its path from the root.
struct File {
    path: String,
    text: String,
}

pub(crate) fn run() -> Result<String> {
    let files = files()?;
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for file in &files {
        check_file(file, &mut wrong);
    }
    check_links(&files, &mut wrong);
    check_promises(&files, &mut wrong);
    check_core_is_pure(&files, &mut wrong);
    check_packages(&metadata, &mut wrong);
    if !wrong.is_empty() {
        bail!("{} things are not tidy:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    Ok(format!("tidy: {} files", files.len()))
}

/// Every text file that is committed or could be: what git would take.
fn files() -> Result<Vec<File>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    if !listed.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    }
    let paths = String::from_utf8(listed.stdout).context("a path that is not UTF-8")?;
    let paths: BTreeSet<&str> = paths.split('\0').filter(|path| !path.is_empty()).collect();
    Ok(paths
        .into_iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(root().join(path)).ok()?;
            Some(File { path: path.to_owned(), text })
        })
        .collect())
}

fn metadata() -> Result<Value> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn check_file(file: &File, wrong: &mut Vec<String>) {
    let File { path, text } = file;
    if text.len() > MAX_BYTES {
        wrong.push(format!("{path}: {} bytes, at most {MAX_BYTES}", text.len()));
    }
    let is_rust = path.ends_with(".rs");
    let is_ours =
        is_rust || [".py", ".mjs", ".js", ".sh", ".toml", ".md", ".yaml"].iter().any(|end| path.ends_with(end));
    if is_rust && text.lines().count() > MAX_LINES {
        wrong.push(format!("{path}: {} lines, at most {MAX_LINES}", text.lines().count()));
    }
    for (at, line) in text.lines().enumerate() {
        let mut say = |what: &str| wrong.push(format!("{path}:{}: {what}", at + 1));
        if is_ours && line.trim_end() != line && !path.ends_with(".md") {
            say("blanks at the end of the line");
        }
        if ["<<<<<<< ", ">>>>>>> "].iter().any(|mark| line.starts_with(mark)) {
            say("a merge conflict");
        }
        if !is_rust {
            continue;
        }
        // Put together here, so that these lines do not find themselves.
        for word in [
            concat!("to", "do!("),
            concat!("unimple", "mented!("),
            concat!("dbg", "!("),
            concat!("FIX", "ME"),
            concat!("XX", "X"),
        ] {
            if line.contains(word) {
                say(&format!("{word:?} is not for commits"));
            }
        }
        if !path.starts_with("crates/sandpool-sys/") && has_unsafe(line) {
            say("`unsafe` is for sandpool-sys only");
        }
    }
    if is_rust && path.ends_with("/lib.rs") && !text.starts_with("//!") {
        wrong.push(format!("{path}: does not begin with its one job"));
    }
}

/// The line has the keyword itself, in code.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let keyword = concat!("un", "safe");
    ["{", "fn", "impl", "extern", "trait"].iter().any(|next| code.contains(&format!("{keyword} {next}")))
}

/// Links between our documents lead somewhere.
fn check_links(files: &[File], wrong: &mut Vec<String>) {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (at, line) in file.text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target_path = target.split('#').next().unwrap_or_default();
                if target_path.is_empty() || target_path.contains("://") || target_path.contains(' ') {
                    continue;
                }
                let from = Path::new(&file.path).parent().unwrap_or(Path::new(""));
                let resolved = normal(&from.join(target_path));
                let there = paths.contains(resolved.as_str())
                    || paths.iter().any(|path| path.starts_with(&format!("{resolved}/")));
                if !there {
                    wrong.push(format!("{}:{}: there is no {target}", file.path, at + 1));
                }
            }
        }
    }
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part.as_os_str().to_str() {
            Some("..") => drop(parts.pop()),
            Some(".") | None => {}
            Some(part) => parts.push(part.to_owned()),
        }
    }
    parts.join("/")
}

/// Every test that `PROMISES.md` names is there: code spans with two underscores in the tables' rows are names of tests, and
/// those that begin with `walls::` or `soak::` are strings in tests of real sandboxes.
fn check_promises(files: &[File], wrong: &mut Vec<String>) {
    let Some(promises) = files.iter().find(|file| file.path == "PROMISES.md") else {
        wrong.push("PROMISES.md is missing".into());
        return;
    };
    let mut defined = BTreeSet::new();
    for file in files {
        let keyword = match Path::new(&file.path).extension().and_then(|extension| extension.to_str()) {
            Some("rs") => "fn ",
            Some("py") => "def ",
            _ => continue,
        };
        for line in file.text.lines() {
            if let Some(rest) = line.split_once(keyword).map(|(_, rest)| rest) {
                let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                defined.insert(name);
            }
        }
    }
    for (at, line) in promises.text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        for span in line.split('`').skip(1).step_by(2) {
            let name = span.rsplit("::").next().unwrap_or(span);
            let is_scene = span.starts_with("soak::") || span.starts_with("walls::") && name.contains('-');
            if is_scene {
                let ends = [format!("{name}\""), format!("{name} ... ok")];
                // Attackers are data of a crate, which the tests run.
                let is_in = |file: &File| {
                    (file.path.contains("/tests/") || file.path.starts_with("crates/sandpool-attack/src/"))
                        && ends.iter().any(|end| file.text.contains(end))
                };
                if !files.iter().any(is_in) {
                    wrong.push(format!("PROMISES.md:{}: there is no test {name}", at + 1));
                }
                continue;
            }
            let is_test = name.matches('_').count() >= 2
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_test && !defined.contains(name) {
                wrong.push(format!("PROMISES.md:{}: there is no test {name}", at + 1));
            }
        }
    }
}

/// The core has no I/O, no clock and no randomness of its own.
fn check_core_is_pure(files: &[File], wrong: &mut Vec<String>) {
    let banned = ["std::fs", "std::io", "std::net", "std::process", "std::thread", "Instant::now", "SystemTime"];
    for file in files.iter().filter(|file| file.path.starts_with("crates/sandpool-core/src/")) {
        for (at, line) in file.text.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(*word)) {
                wrong.push(format!("{}:{}: {word} has no place in the core", file.path, at + 1));
            }
        }
    }
}

/// Arrows between rooms, licences, and crates that are there twice.
fn check_packages(metadata: &Value, wrong: &mut Vec<String>) {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().into_iter().flatten().filter_map(|node| node["id"].as_str()).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id))) {
        let name = package["name"].as_str().unwrap_or_default();
        versions.entry(name).or_default().insert(package["version"].as_str().unwrap_or_default());
        let licence = package["license"].as_str().unwrap_or_default();
        if !licence_fits(licence) {
            wrong.push(format!("{name}: licence {licence:?} is not in the list"));
        }
        if let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) {
            for dependency in package["dependencies"].as_array().into_iter().flatten() {
                let to = dependency["name"].as_str().unwrap_or_default();
                let is_room = to.starts_with("sandpool");
                // What is optional is for fuzzing and for fixtures, and in no program that is released.
                let is_always = dependency["kind"].is_null() && dependency["optional"] != true;
                if is_room && is_always && !allowed.contains(&to) {
                    wrong.push(format!("{name} must not know {to}"));
                }
            }
        }
    }
    let twice: Vec<_> = versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| *name).collect();
    if twice.len() > MAX_DUPLICATES {
        wrong.push(format!(
            "{} crates are there in several versions, at most {MAX_DUPLICATES}: {}",
            twice.len(),
            twice.join(", ")
        ));
    }
}

/// One of the alternatives of an SPDX expression has only licences of the list. Old manifests write `/` for `OR`.
fn licence_fits(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    let fits = |licence: &str| LICENCES.contains(&licence.trim());
    // `A AND (B OR C)`: without parentheses every AND part must have one good alternative.
    plain.split(" AND ").all(|part| part.split(" OR ").any(fits))
        || plain.split(" OR ").any(|one| one.split(" AND ").all(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_in_code_only() {
        let keyword = concat!("un", "safe");
        assert!(has_unsafe(&format!("    {keyword} {{ f() }}")));
        assert!(has_unsafe(&format!("{keyword} fn f()")));
        assert!(!has_unsafe(&format!("// {keyword} {{")));
        assert!(!has_unsafe(&format!("{keyword}_code = 1")));
    }

    #[test]
    fn licences_are_read_as_expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "Apache-2.0/MIT",
            "ISC AND (Apache-2.0 OR ISC)",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(licence_fits(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0"] {
            assert!(!licence_fits(bad), "{bad}");
        }
    }

    #[test]
    fn links_are_resolved_from_their_document() {
        assert_eq!(normal(Path::new("docs/../README.md")), "README.md");
        assert_eq!(normal(Path::new("docs/./api.md")), "docs/api.md");
    }

    #[test]
    fn a_promise_without_its_test_is_found() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let files = [
            file(
                "PROMISES.md",
                "| p | `walls::no_way_out` | `no_such_test_here` | `walls::ID1-there` | `walls::ID1-not-there` |",
            ),
            file("crates/a/tests/walls/probes.rs", "probe(\"ID1-there\")"),
            file("crates/a/src/lib.rs", "    fn no_way_out() {}"),
        ];
        let mut wrong = Vec::new();
        check_promises(&files, &mut wrong);
        let no_test = "PROMISES.md:1: there is no test no_such_test_here";
        assert_eq!(wrong, [no_test, "PROMISES.md:1: there is no test ID1-not-there"]);
    }
}
