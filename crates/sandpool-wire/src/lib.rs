//! What crosses a process boundary, as plain data.
//!
//! Types here are read from bytes that a hostile sandbox may have written. They are bounded before they are
//! parsed (see [`frame`]), and nothing in them is trusted by its reader.

pub mod agent;
pub mod egress;
pub mod frame;
pub mod terminal;
pub mod tree;
