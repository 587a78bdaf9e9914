//! What differs in a container that an OCI runtime has made and that shares the host's kernel: the same attackers, and what they must see there.

use crate::{Probe, probe};

/// These take the place of those of [`crate::QUIET`] with the same id.
pub const CONTAINED: &[Probe] = &[
    // Such a container has the name of a terminal; that there is none behind it is what counts.
    probe(
        "NS4-no-terminal",
        "tell(attempt(open, '/dev/tty'), os.getsid(0) == os.getpid(), status('NSsid') != '0')",
        "ENXIO\nTrue\nTrue",
    ),
    // Masks are the null device, mounted over the files that they mask, and empty directories, which can only be read.
    probe(
        "ID5-suid-is-inert",
        "import shutil\n\
         shutil.copy('/usr/bin/id', '/tmp/id'); os.chmod('/tmp/id', 0o6755)\n\
         tell(subprocess.check_output(['/tmp/id', '-u']).decode().strip())\n\
         masks = {p for p, o, k, _ in mounts() if p.startswith('/proc/') and os.path.isdir(p) and not os.listdir(p) and 'ro' in o}\n\
         tell(all('nosuid' in options or place in masks for place, options, _, _ in mounts()))",
        "1000\nTrue",
    ),
    probe(
        "FS3-mount-attributes",
        "devices = {'/dev/' + n for n in ('null', 'zero', 'full', 'random', 'urandom', 'tty', 'pts')}\n\
         masks = {p for p, _, _, _ in mounts() if p.startswith('/proc/') and os.stat(p).st_rdev == os.makedev(1, 3)}\n\
         empty = {p for p, o, k, _ in mounts() if p.startswith('/proc/') and os.path.isdir(p) and not os.listdir(p) and 'ro' in o}\n\
         tell([p for p, o, _, _ in mounts() if p not in empty and ('nosuid' not in o or 'nodev' not in o and p not in devices | masks)])\n\
         tell([p for p, o, k, _ in mounts() if (k in ('proc', 'devpts') or p == '/dev/shm') and 'noexec' not in o])",
        "[]\n[]",
    ),
    probe(
        "FS5-few-devices",
        "tell(sorted(set(os.listdir('/dev')) - {'core'}), os.path.realpath('/dev/core') in ('/dev/core', '/proc/kcore'))\n\
         tell(*[attempt(os.mknod, '/tmp/d%d' % n, kind | 0o666, os.makedev(1, 1)) for n, kind in enumerate((stat.S_IFCHR, stat.S_IFBLK))])\n\
         tell(attempt(os.mkfifo, '/tmp/fifo'))",
        "['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'tty', 'urandom', 'zero']\nTrue\nEPERM\nEPERM\nok",
    ),
    // The runtime's list kills what ours does not know.
    probe(
        "SC1-x32-is-unknown",
        "def dies(*words):\n\
         \x20   pid = os.fork()\n\
         \x20   if not pid:\n\
         \x20       call(*words)\n\
         \x20       os._exit(0)\n\
         \x20   return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n\
         tell(dies(0x40000000 + 39), dies(0x40000000 + 41, 38, 5, 0), dies(0x40000000 + 56, 0x10000000))",
        "-31\n-31\n-31",
    ),
];
