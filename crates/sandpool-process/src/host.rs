//! What this host can do, and what a wall made on it consists of.

use sandpool_driver::Description;

use crate::seccomp::Filters;

/// The process level, as sessions report it.
#[must_use]
pub fn describe() -> Description {
    Description {
        level: "process".to_owned(),
        wall: vec![
            "namespaces: user, pid, mount, network, ipc, uts, cgroup".to_owned(),
            "ids: a range of 65,536 for each sandbox".to_owned(),
            "files: a read-only overlay of the image".to_owned(),
            format!("seccomp: {} system calls allowed", Filters::allowed()),
            "landlock: required".to_owned(),
            "network: loopback only".to_owned(),
        ],
        weaker: Vec::new(),
    }
}
