//! Names and numbers as callers give them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SandboxId};

fuzz_target!(|text: &str| {
    if let Ok(identifier) = Identifier::parse(text) {
        assert!(identifier.as_str() == text && (4..=128).contains(&text.len()) && text.is_ascii());
    }
    if let Ok(pool) = PoolName::parse(text) {
        assert!(pool.as_str() == text && (1..=63).contains(&text.len()));
    }
    if let Some(id) = ExecutionId::parse(text) {
        assert_eq!(ExecutionId::parse(&id.to_string()), Some(id));
    }
    if let Some(id) = SandboxId::parse(text) {
        assert_eq!(SandboxId::parse(&id.to_string()), Some(id));
    }
});
