//! The rules of one pool.
