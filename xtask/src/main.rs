//! The project's own chores. `cargo xtask ci` is what CI runs, and it runs on a laptop.
//!
//! ```text
//! cargo xtask ci          everything: format, lints, tidy, tests, doc tests, release build, real clients
//! cargo xtask ci --fast   without the release build and what needs it
//! cargo xtask tidy        house rules that a compiler cannot see
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod ci;
mod tidy;

const USAGE: &str = "usage: cargo xtask ci [--fast] | tidy";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["ci"] => ci::run(false),
        ["ci", "--fast"] => ci::run(true),
        ["tidy"] => tidy::run(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
