//! What one session could see of, or do to, another of its pool.

/// Two sessions: what the first does before, and what the second tries.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Its line of the specification, and what it tries.
    pub id: &'static str,
    /// What the neighbour runs first.
    pub theirs: &'static str,
    /// What the attacker runs then; `NEIGHBOUR` is what the neighbour has printed.
    pub ours: &'static str,
    /// The attacker's whole standard output, but for space at its end, when the wall holds.
    pub safe: &'static str,
}

const fn scene(id: &'static str, theirs: &'static str, ours: &'static str, safe: &'static str) -> Scene {
    Scene { id, theirs, ours, safe }
}

/// In this order, between the same two sessions.
pub const SCENES: &[Scene] = &[
    scene(
        "ID1-ranges-differ",
        "tell(text('/proc/self/uid_map').split()[1])",
        "tell(text('/proc/self/uid_map').split()[1] == NEIGHBOUR)",
        "False",
    ),
    scene(
        "NS1-abstract-sockets-are-apart",
        "listener = socket.socket(socket.AF_UNIX); listener.bind('\\0meet'); listener.listen(); tell(1)",
        "tell(attempt(socket.socket(socket.AF_UNIX).connect, '\\0meet'))",
        "ECONNREFUSED",
    ),
    scene(
        "NS1-ports-are-apart",
        "server = socket.socket(); server.bind(('127.0.0.1', 4321)); server.listen(); tell(1)",
        "tell(attempt(socket.socket().connect, ('127.0.0.1', 4321)))",
        "ECONNREFUSED",
    ),
    scene(
        "NS1-shared-memory-is-apart",
        "libc.shmget(4242, 4096, 0o1666); open('/dev/shm/meet', 'w').write('x'); tell(1)",
        "tell(libc.shmget(4242, 0, 0), os.listdir('/dev/shm'), len(text('/proc/sysvipc/shm').splitlines()))",
        "-1\n[]\n1",
    ),
    scene(
        "FS2-locks-are-apart",
        "locked = open('/etc/passwd'); fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB); tell(1)",
        "tell(attempt(fcntl.flock, open('/etc/passwd'), fcntl.LOCK_EX | fcntl.LOCK_NB))",
        "ok",
    ),
    scene(
        "FS2-leases-and-inotify-are-apart",
        "tell(1)",
        "watch = libc.inotify_init1(0x800)\n\
         tell(libc.inotify_add_watch(watch, b'/etc/passwd', 0xfff) > 0)",
        "True",
    ),
    scene(
        "FS4-files-are-apart",
        "open('/mnt/data/meet', 'w').write('x'); open('/tmp/meet', 'w').write('x'); tell(1)",
        "tell(os.path.exists('/mnt/data/meet'), os.path.exists('/tmp/meet'), os.listdir('/mnt/data'))",
        "False\nFalse\n[]",
    ),
    scene(
        "NS1-processes-are-apart",
        "sleeper = subprocess.Popen(['sleep', '5555']); tell(1)",
        "tell([p for p in os.listdir('/proc') if p.isdigit() and os.path.exists(f'/proc/{p}/cmdline') and '5555' in text(f'/proc/{p}/cmdline')])",
        "[]",
    ),
];
