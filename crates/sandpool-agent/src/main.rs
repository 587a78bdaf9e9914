//! The static program that is pid 1 of every sandbox.
fn main() {}
