//! The system calls a sandbox may make.
