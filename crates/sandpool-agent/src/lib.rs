//! The agent: what a sandbox's pid 1 does.
//!
//! ```text
//! server ==dial==> streams ---+                     +--- files      as the sandbox's user, no link followed
//!                             +--> agent (one loop) +--- executions  programs, their pipes and terminals
//! kernel: child ended --------+                     +--- interpreter one runner, one run at a time
//! ```
//!
//! One thread, one loop, and no secret but tokens of its own session. Everything from a stream or from the workload is bounded before it is kept.

pub mod agent;
pub mod contained;
pub mod container;
pub mod environment;
pub mod files;
pub mod identity;
pub mod interpreter;
pub mod log;
pub mod login;
pub mod pipe;
pub mod port;
pub mod probe;
pub mod procs;
pub mod program;
pub mod relay;
pub mod ring;
pub mod runner;
pub mod shim;
pub mod stream;
pub mod terminal;
pub mod tree;
pub mod turn;
pub mod zygote;
