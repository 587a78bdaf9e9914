//! The project's own chores. `cargo xtask ci` is what CI runs.
fn main() {}
