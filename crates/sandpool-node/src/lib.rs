//! The service layer: pools, sessions, executions, files. What every dialect calls.
