//! The program that sandboxes run, for tests that start a launcher.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the static agent, as the binary's build does.
pub(crate) fn build(target: &Path) -> io::Result<PathBuf> {
    let target = target.join("agent");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "sandpool-agent", "--profile", "agent", "--target", TARGET])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()?;
    if status.success() {
        Ok(target.join(TARGET).join("agent/sandpool-agent"))
    } else {
        Err(io::Error::other("no agent"))
    }
}
