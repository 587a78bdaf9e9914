//! Machines: what they are, the keeper around each one's VMM, and the first program inside.
//!
//! ```text
//! keeper   first process of a process-level sandbox: starts the VMM in it, and passes streams on
//! extents  what is on a disk, at the end of a template
//! saved    a machine as bytes
//! vmm      VMMs behind one trait
//! mux      many streams over the one port of a machine; relay: with their sockets
//! guest    inside: from a kernel to a sandbox with the agent
//! identity whether a kernel is another than the host's, proved
//! prepared what of that is there; for those who declare pools
//! found    what a host has to run them with; program: programs of the host, and their floors
//! trial    whether the host's processors run our guests
//! build    what machines are made of: kernel, first root file system, the VMM's root, images' disks
//! ```

pub mod build;
mod extents;
pub mod found;
pub mod guest;
pub mod identity;
pub mod keeper;
pub mod machine;
pub mod mux;
pub mod prepared;
pub mod program;
pub mod relay;
pub mod saved;
mod trial;
mod unpack;
pub mod vmm;
