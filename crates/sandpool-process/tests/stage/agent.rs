//! The program that sandboxes run, and what they see, for tests that start a launcher.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sandpool_vm::found::{Choice, Wanted};

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

/// What is to run machines, by an environment variable: QEMU without the host's processors, if nothing is said, which every host has.
#[allow(dead_code, reason = "other tests have no machines")]
pub(crate) fn vmm() -> Result<Wanted, String> {
    let word = std::env::var("SANDPOOL_TEST_VMM").unwrap_or_else(|_| Choice::QemuEmulated.word().to_owned());
    Ok(Wanted { vmm: Some(word.parse()?), ..Wanted::default() })
}

/// The image `shell`, made once below `images`.
#[allow(dead_code, reason = "other tests use images that exist")]
pub(crate) fn image(images: &Path) -> io::Result<PathBuf> {
    let rootfs = images.join("shell");
    if !rootfs.exists() {
        let partial = images.join("partial");
        let made = Command::new("mmdebstrap").args(["--quiet", "--variant=minbase", "trixie"]).arg(&partial).status();
        let made = made.map_err(|error| {
            io::Error::other(format!("mmdebstrap cannot be run ({error}); apt-get install mmdebstrap"))
        })?;
        if !made.success() {
            panic!("mmdebstrap: {made}");
        }
        std::fs::rename(&partial, &rootfs)?;
    }
    Ok(rootfs)
}
