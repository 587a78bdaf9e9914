//! What differs in a machine, whose kernel is its own: the same attackers, and what they must see there.

use crate::{Probe, probe};

/// These take the place of those of [`crate::QUIET`] with the same id.
pub const IN_MACHINES: &[Probe] = &[
    // Its id is the machine's own, and not its host's.
    probe(
        "NS6-constant-name",
        "tell(socket.gethostname(), text('/proc/sys/kernel/domainname').strip(), len(bytes.fromhex(text('/etc/machine-id'))))\n\
         tell(repr(text('/proc/sys/kernel/random/boot_id')), attempt(open, '/etc/machine-id', 'w'))",
        "sandbox\n\n16\n''\nEROFS",
    ),
    // The session's files are on a disk of its own.
    probe(
        "FS4-few-places-to-write",
        "tell(sorted((p, k) for p, o, k, _ in mounts() if 'rw' in o and k in ('tmpfs', 'ext4')))\n\
         tell(sorted({k for p, o, k, _ in mounts() if 'rw' in o} - {'tmpfs', 'ext4'}))",
        "[('/dev/shm', 'tmpfs'), ('/home/sandbox', 'tmpfs'), ('/mnt/data', 'ext4'), ('/tmp', 'tmpfs')]\n['devpts', 'devtmpfs', 'proc']",
    ),
];

/// What attackers of [`crate::SCENES`] must see there: two machines need no two ranges of ids, since no kernel has both.
pub const SCENES_IN_MACHINES: &[(&str, &str)] = &[("ID1-ranges-differ", "True")];
