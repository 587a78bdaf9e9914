//! One module per command. Each takes the context and its arguments, and answers the exit code.

mod attack;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod env;
pub(crate) mod files;
pub(crate) mod foreign;
pub(crate) mod image;
pub(crate) mod journal;
pub(crate) mod mcp;
pub(crate) mod pool;
pub(crate) mod run;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod token;
pub(crate) mod up;

pub(crate) use crate::failure::Outcome;
