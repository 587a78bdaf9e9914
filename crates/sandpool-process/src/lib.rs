//! The process-level driver and its launcher: namespaces, cgroups, seccomp, Landlock, overlay.
