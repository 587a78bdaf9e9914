//! The project's own chores. `cargo xtask ci` is what CI runs, and it runs on a laptop.
//!
//! ```text
//! cargo xtask ci             everything: format, lints, tidy, tests, doc tests, real clients, fuzzing
//! cargo xtask ci --fast      without real clients and fuzzing
//! cargo xtask ci --release   real clients drive the released program
//! cargo xtask tidy           house rules that a compiler cannot see
//! cargo xtask fuzz [--minutes N] [TARGET...]   fuzzing alone
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod ci;
mod fuzz;
mod tidy;

use ci::Extent;

const USAGE: &str = "usage: cargo xtask ci [--fast|--release] | tidy | fuzz [--minutes N] [TARGET...]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["ci"] => ci::run(Extent::Whole),
        ["ci", "--fast"] => ci::run(Extent::Fast),
        ["ci", "--release"] => ci::run(Extent::Release),
        ["fuzz", "--minutes", minutes, ref targets @ ..] => match minutes.parse() {
            Ok(minutes) => fuzz::run(minutes, targets),
            Err(_) => Err(anyhow::anyhow!("--minutes {minutes:?} is no whole number")),
        },
        ["fuzz", ref targets @ ..] => fuzz::run(fuzz::MINUTES, targets),
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

/// Cargo, in the repository's root.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Where cargo builds.
fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The repository's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
