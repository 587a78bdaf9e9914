//! Sandpool's one program: server, launcher, agent inside, and the command line that talks to them.
//!
//! Only the arguments, the settings and the state directory are joined so far; the other modules beside this file wait for the launcher, the
//! dialects and the tokens, and are declared here when those exist.

#![allow(
    dead_code,
    unused_imports,
    unused_qualifications,
    reason = "main is joined when the parts it starts are there"
)]

mod args;
mod failure;
mod home;
mod print;
#[cfg(test)]
mod reference;
mod settings;

fn main() {}
