//! Builds the agent, the static program inside every sandbox, so that the binary carries it.
//!
//! The agent is another crate with another profile and another linkage than the rest, so it is built by a cargo of its
//! own, in a target directory of its own. `SANDPOOL_AGENT` names a program to take instead.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What cargo and clippy tell this build, and what must not steer the other one.
const INHERITED: [&str; 20] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "TARGET",
];

fn main() -> Result<(), Box<dyn Error>> {
    let crates = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(var("OUT_DIR")?);
    println!("cargo:rerun-if-env-changed=SANDPOOL_AGENT");
    println!("cargo:rerun-if-changed=build.rs");
    let agent = match env::var_os("SANDPOOL_AGENT") {
        Some(given) => {
            let given = PathBuf::from(given);
            println!("cargo:rerun-if-changed={}", given.display());
            given
        }
        None => build(&crates, &out)?,
    };
    std::fs::copy(&agent, out.join("agent.elf")).map_err(|error| format!("{}: {error}", agent.display()))?;
    Ok(())
}

fn build(crates: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    for source in ["sandpool-agent", "sandpool-vm", "sandpool-walls", "sandpool-wire", "sandpool-core", "sandpool-sys"]
    {
        for part in ["src", "Cargo.toml", "build.rs", "runners"] {
            let path = crates.join(source).join(part);
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", crates.join("..").join(file).display());
    }
    let target_dir = out.join("agent-target");
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .args([
            "build",
            "--quiet",
            "--package",
            "sandpool-agent",
            "--bin",
            "sandpool-agent",
            "--profile",
            "agent",
            "--target",
            TARGET,
        ])
        .arg("--manifest-path")
        .arg(crates.join("../Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    for name in INHERITED {
        if name != "CARGO_ENCODED_RUSTFLAGS" {
            cargo.env_remove(name);
        }
    }
    let by_prefix = ["CARGO_PKG_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_", "CARGO_TARGET_X86_64_", "DEP_"];
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| by_prefix.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().map_err(|error| format!("cannot run cargo for the agent: {error}"))?;
    if !status.success() {
        return Err("the agent does not build (see above)".into());
    }
    Ok(target_dir.join(TARGET).join("agent/sandpool-agent"))
}

fn var(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}
