//! Sandpool.
fn main() {}
