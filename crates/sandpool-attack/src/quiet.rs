//! What does no harm where the walls hold: Python, one after another in one session.

use crate::{Probe, probe};

/// One after another in one session: none of them does harm when the wall holds.
pub const QUIET: &[Probe] = &[
    // Identity.
    probe(
        "ID2-uid-1000",
        "tell(os.getresuid(), os.getresgid(), os.getgroups())",
        "(1000, 1000, 1000)\n(1000, 1000, 1000)\n[]",
    ),
    probe(
        "ID1-own-range",
        "inside, outside, count = map(int, text('/proc/self/uid_map').split())\n\
         tell(inside, outside >= 0x20000000, count, text('/proc/self/uid_map') == text('/proc/self/gid_map'))",
        "0\nTrue\n65536\nTrue",
    ),
    probe(
        "ID2-not-root-again",
        "tell(attempt(os.setuid, 0), attempt(os.setgid, 0), attempt(os.setresuid, 998, 998, 998))",
        "EPERM\nEPERM\nEPERM",
    ),
    probe("ID3-no-groups", "tell(attempt(os.setgroups, [0]), status('Groups'))", "EPERM\n"),
    probe(
        "ID4-all-sets-empty",
        "tell(*[int(status(name), 16) for name in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')])",
        "0\n0\n0\n0\n0",
    ),
    probe(
        "ID4-securebits-locked",
        "tell(bin(libc.prctl(27)), libc.prctl(28, 0), word(ctypes.get_errno()))",
        "0b11101111\n-1\nEPERM",
    ),
    probe(
        "ID4-nothing-to-raise",
        "sets = struct.pack('6I', 0xffffffff, 0xffffffff, 0, 0xffffffff, 0xffffffff, 0)\n\
         tell(call(126, struct.pack('Ii', 0x20080522, 0), sets), libc.prctl(47, 2, 21, 0, 0))",
        "EPERM\n-1",
    ),
    probe("ID5-no-new-privs", "tell(status('NoNewPrivs'), libc.prctl(38, 0, 0, 0, 0))", "1\n-1"),
    probe(
        "ID5-suid-is-inert",
        "found = [p for d in ('/usr/bin', '/usr/sbin', '/usr/lib') for p in glob.glob(d + '/**', recursive=True)\n\
         \x20        if os.path.isfile(p) and os.stat(p).st_mode & 0o6000]\n\
         import shutil\n\
         shutil.copy('/usr/bin/id', '/tmp/id'); os.chmod('/tmp/id', 0o6755)\n\
         tell(subprocess.check_output(['/tmp/id', '-u']).decode().strip())\n\
         tell(all('nosuid' in options for _, options, _, _ in mounts()))",
        "1000\nTrue",
    ),
    probe(
        "ID6-environment-from-nothing",
        "known = {'PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'TMPDIR', 'PYTHONUNBUFFERED', 'MPLCONFIGDIR',\n\
         \x20        'IPYTHONDIR', 'SANDPOOL_EXECUTION', 'PWD'}\n\
         allowed = known | set(__import__('json').loads(text('/etc/sandpool-image.json')).get('env', {})) \
         if os.path.exists('/etc/sandpool-image.json') else known\n\
         start = {v.split('=')[0] for v in text('/proc/self/environ').split(chr(0)) if v}\n\
         tell(sorted(start - allowed))",
        "[]",
    ),
    probe(
        "ID7-pid1-cannot-be-read",
        "tell(*[attempt(open, f'/proc/1/{n}', 'rb') for n in ('mem', 'environ', 'maps', 'auxv', 'stack', 'syscall')])\n\
         tell(attempt(os.readlink, '/proc/1/exe'), attempt(os.listdir, '/proc/1/fd'), attempt(os.listdir, '/proc/1/root'))",
        "EACCES\nEACCES\nEACCES\nEACCES\nEACCES\nEACCES\nEACCES\nEACCES\nEACCES",
    ),
    probe(
        "ID7-pid1-cannot-be-hurt",
        "import itertools\n\
         tell(*sorted({attempt(os.kill, 1, n) for n in (0, 9, 15, 19, 2)}), call(101, 16, 1, 0, 0))\n\
         tell(attempt(open, '/proc/1/mem', 'wb'), attempt(open, '/proc/1/oom_score_adj', 'w'))\n\
         tell(attempt(os.setpriority, os.PRIO_PROCESS, 1, 19), call(302, 1, 7, struct.pack('QQ', 1, 1), 0))",
        "EPERM\nEPERM\nEACCES\nEACCES\nEPERM\nEPERM",
    ),
    probe(
        "ID7-dies-with-pid1",
        "number = ctypes.c_int()\nlibc.prctl(2, ctypes.byref(number), 0, 0, 0)\ntell(number.value)",
        "9",
    ),
    // Namespaces and processes.
    probe(
        "NS1-only-own-processes",
        "pids = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n\
         tell(1 in pids, len(pids) < 10, os.getppid())",
        "True\nTrue\n1",
    ),
    probe("NS1-only-loopback", "tell(sorted(n for _, n in socket.if_nameindex()))", "['lo']"),
    probe(
        "NS1-no-way-to-the-network",
        "def dial(*where):\n    s = socket.socket(); s.settimeout(2); s.connect(where)\n\
         tell(attempt(dial, '8.8.8.8', 53), attempt(dial, '169.254.169.254', 80), attempt(dial, '10.0.0.1', 22))\n\
         tell(attempt(dial, '127.0.0.1', 22))",
        "ENETUNREACH\nENETUNREACH\nENETUNREACH\nECONNREFUSED",
    ),
    probe(
        "NS1-ipc-is-empty",
        "tell(len(text('/proc/sysvipc/shm').splitlines()), len(text('/proc/sysvipc/sem').splitlines()))",
        "1\n1",
    ),
    probe(
        "NS1-cgroup-is-its-own-root",
        "tell(*sorted({line.split(':')[2] for line in text('/proc/self/cgroup').splitlines() if 'sys' not in line and line.split(':')[1] in ('memory', 'pids', 'cpu', '')}))",
        "/",
    ),
    probe(
        "NS3-only-agreed-descriptors",
        "fds = {}\n\
         for n in os.listdir('/proc/self/fd'):\n\
         \x20   try: fds[int(n)] = os.readlink('/proc/self/fd/' + n).split(':')[0]\n\
         \x20   except OSError: pass\n\
         tell(fds.pop(0), *sorted(set(fds[n] for n in (1, 2, 4, 5))))\n\
         rest = {n: what for n, what in fds.items() if n not in (1, 2, 4, 5)}\n\
         tell([what for what in rest.values() if what.startswith('/') and os.path.isdir(what)])\n\
         own = text('/proc/net/unix')\n\
         tell([n for n in rest if rest[n] == 'socket' and str(os.fstat(n).st_ino) not in own or 'memfd' in rest[n]])",
        "/dev/null\npipe\n[]\n[]",
    ),
    probe(
        "NS3-a-program-gets-three",
        // The fourth is the directory that is being listed.
        "tell(subprocess.check_output(['ls', '/proc/self/fd'], text=True).split())",
        "['0', '1', '2', '3']",
    ),
    probe(
        "NS4-no-terminal",
        "tell(attempt(open, '/dev/tty'), os.getsid(0) == os.getpid(), status('NSsid') != '0')",
        "ENOENT\nTrue\nTrue",
    ),
    probe(
        "NS6-constant-name",
        "tell(socket.gethostname(), text('/proc/sys/kernel/domainname').strip(), repr(text('/etc/machine-id')))\n\
         tell(repr(text('/proc/sys/kernel/random/boot_id')))",
        "sandbox\n\n''\n''",
    ),
    // Files.
    probe(
        "FS1-no-path-of-the-host",
        "lines = [line for _, _, _, line in mounts()]\n\
         tell([line for line in lines if re.search(r'/(var|root|work|home/(?!sandbox)|srv|opt|lib/sandpool)', line.split(' - ')[0].split()[3])])\n\
         tell([line for line in lines if re.search(r'(lower|upper|work)dir=(?!/proc/self/fd/)', line)])\n\
         tell(os.path.realpath('/proc/self/root'), os.listdir('/') == os.listdir('/../../..'))",
        "[]\n[]\n/\nTrue",
    ),
    probe(
        "FS2-root-is-read-only",
        "tell(*[attempt(open, p + '/x', 'w') for p in ('/', '/usr', '/etc', '/var', '/home', '/mnt', '/dev', '/usr/lib')])\n\
         tell(attempt(os.chmod, '/etc/passwd', 0o777), attempt(os.unlink, '/etc/passwd'), attempt(os.utime, '/etc/passwd'))",
        "EROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS",
    ),
    probe(
        "FS3-mount-attributes",
        "devices = {'/dev/' + n for n in ('null', 'zero', 'full', 'random', 'urandom', 'pts')}\n\
         tell([p for p, o, _, _ in mounts() if 'nosuid' not in o or 'nodev' not in o and p not in devices])\n\
         tell([p for p, o, k, _ in mounts() if (k in ('proc', 'devpts') or p == '/dev/shm') and 'noexec' not in o])",
        "[]\n[]",
    ),
    probe(
        "FS4-few-places-to-write",
        "tell(sorted(p for p, o, k, _ in mounts() if 'rw' in o and k == 'tmpfs'))\n\
         tell(sorted({k for p, o, k, _ in mounts() if 'rw' in o} - {'tmpfs'}))",
        "['/dev/shm', '/home/sandbox', '/mnt/data', '/tmp']\n['devpts', 'devtmpfs', 'proc']",
    ),
    probe(
        "FS5-few-devices",
        "tell(sorted(os.listdir('/dev')))\n\
         tell(*[attempt(os.mknod, '/tmp/d%d' % n, kind | 0o666, os.makedev(1, 1)) for n, kind in enumerate((stat.S_IFCHR, stat.S_IFBLK))])\n\
         tell(attempt(os.mkfifo, '/tmp/fifo'))",
        "['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero']\nEPERM\nEPERM\nok",
    ),
    probe(
        "FS6-proc-is-masked",
        "names = '''kcore keys key-users timer_list sched_debug latency_stats kallsyms kpagecount kpageflags kpagecgroup kmsg\n\
         slabinfo vmallocinfo interrupts softirqs iomem ioports mtrr modules swaps zoneinfo pagetypeinfo buddyinfo schedstat\n\
         vmstat diskstats partitions config.gz crypto cgroups cmdline sysrq-trigger pressure acpi scsi asound firmware'''.split()\n\
         there = [n for n in names if os.path.lexists('/proc/' + n)]\n\
         proc = os.stat('/proc').st_dev\n\
         tell([n for n in there if os.stat('/proc/' + n).st_dev == proc])\n\
         tell([n for n in there if (os.listdir if os.path.isdir('/proc/' + n) else text)('/proc/' + n)], len(there) > 20)",
        "[]\n[]\nTrue",
    ),
    probe(
        "FS6-proc-is-not-written",
        "tell(*[attempt(open, '/proc/' + p, 'w') for p in ('sys/kernel/core_pattern', 'sys/kernel/hostname', \
         'sys/net/ipv4/ip_forward', 'sys/user/max_user_namespaces', 'sys/vm/drop_caches')])",
        "EROFS\nEROFS\nEROFS\nEROFS\nEROFS",
    ),
    probe(
        "FS6-nothing-can-be-unmasked",
        "tell(call(166, b'/proc/kcore\\0', 2), call(165, b'x\\0', b'/mnt\\0', b'proc\\0', 0, 0))",
        "EPERM\nEPERM",
    ),
    probe("FS7-no-sys", "tell(os.path.exists('/sys/kernel'), os.path.exists('/sys/fs/cgroup'))", "False\nFalse"),
    probe(
        "FS8-no-sockets",
        "found = [os.path.join(d, f) for d, _, fs in os.walk('/') if not d.startswith('/proc') for f in fs\n\
         \x20        if stat.S_ISSOCK(os.lstat(os.path.join(d, f)).st_mode)] if False else []\n\
         out = subprocess.run(['find', '/', '-xdev', '-type', 's'], capture_output=True, text=True).stdout\n\
         tell(found, repr(out), [line for line in text('/proc/net/unix').splitlines()[1:] if '@' in line])",
        "[]\n''\n[]",
    ),
    probe(
        "FS9-no-core-files",
        "tell(resource.getrlimit(resource.RLIMIT_CORE), attempt(resource.setrlimit, resource.RLIMIT_CORE, (1, 1)))",
        "(0, 0)\nValueError",
    ),
    // System calls.
    probe(
        "SC1-i386-is-killed",
        // mov eax, 20 (getpid); int 0x80; ret
        "tell(machine(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3') in ('signal 31', 'signal 11'))\n\
         tell(machine(b'\\xb8\\x66\\0\\0\\0\\xbb\\x01\\0\\0\\0\\xcd\\x80\\xc3') in ('signal 31', 'signal 11'))",
        "True\nTrue",
    ),
    probe(
        "SC1-x32-is-unknown",
        "tell(call(0x40000000 + 39), call(0x40000000 + 41, 38, 5, 0), call(0x40000000 + 56, 0x10000000))",
        "ENOSYS\nENOSYS\nENOSYS",
    ),
    probe(
        "SC2-no-new-namespaces",
        "flags = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)\n\
         tell(*sorted({call(56, flag | 17, 0, 0, 0, 0) for flag in flags} | {call(272, flag) for flag in flags + (0x80,)}))\n\
         tell(call(435, ctypes.create_string_buffer(88), 88), call(308, 0, 0x10000000))",
        "EPERM\nENOSYS\nEPERM",
    ),
    probe(
        "SC3-privileged-calls",
        "calls = [165, 166, 155, 161, 428, 429, 430, 431, 432, 433, 442, 321, 298, 323, 250, 248, 249, 175, 313, 176, 246, 320,\n\
         \x20        169, 167, 168, 163, 179, 443, 304, 303, 101, 310, 311, 440, 438, 312, 172, 173, 103, 164, 227, 159, 305, 170,\n\
         \x20        171, 153, 212, 300, 301, 279, 256, 237, 238, 154, 180, 136, 139, 272, 308, 317]\n\
         tell([n for n in calls if call(n, 0, 0, 0, 0, 0, 0) != 'EPERM'])",
        "[]",
    ),
    probe(
        "SC4-unknown-calls",
        "calls = [425, 426, 427, 206, 207, 208, 209, 210, 275, 278, 276, 447, 216, 457, 458, 459, 460, 461, 451, 467, 470, 240,\n\
         \x20        241, 242, 243, 244, 245, 333, 448, 453, 462, 500, 1000]\n\
         tell([n for n in calls if call(n, 0, 0, 0, 0, 0, 0) != 'ENOSYS'], call(162))",
        "[]\nok",
    ),
    probe(
        "SC5-socket-families",
        "def errors(families, kind, protocol=0): return sorted({call(41, f, kind, protocol) for f in families})\n\
         others = [f for f in range(64) if f not in (1, 2, 10, 16)]\n\
         tell(errors(others, 1), errors(others, 2), errors(others, 3), errors(others, 5))\n\
         tell(sorted({call(41, 16, 3, p) for p in range(1, 32)}), sorted({call(41, 16, 2, p) for p in range(1, 32)}), call(41, 16, 3, 0))\n\
         tell(sorted({call(53, f, 1, 0, ctypes.create_string_buffer(8)) for f in range(64) if f != 1}))",
        "['EAFNOSUPPORT']\n['EAFNOSUPPORT']\n['EAFNOSUPPORT']\n['EAFNOSUPPORT']\n['EPROTONOSUPPORT']\n['EPROTONOSUPPORT']\nok\n['EAFNOSUPPORT']",
    ),
    probe(
        "SC5-socket-kinds",
        "tell(sorted({call(41, f, kind | flags, p) for f in (2, 10) for kind in (3, 4, 5, 6, 10) for flags in (0, 0x80000, 0x800) for p in (0, 1, 6, 255)}))\n\
         tell(sorted({call(41, f, kind, p) for f in (2, 10) for kind in (1, 2) for p in (1, 33, 50, 51, 58, 132, 136, 255, 262)}))\n\
         tell(call(41, 1, 3, 0), call(41, 1, 5, 0), call(41, 0x100000000 + 38, 5, 0))",
        "['EPROTONOSUPPORT']\n['EPROTONOSUPPORT']\nEPROTONOSUPPORT\nok\nEAFNOSUPPORT",
    ),
    probe(
        "SC6-socket-options",
        "tcp, udp, six = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_INET6)\n\
         options = [(tcp, 6, 31), (tcp, 6, 19), (udp, 17, 100), (tcp, 1, 60), (tcp, 1, 50), (tcp, 1, 52), (tcp, 0, 16), (tcp, 0, 17),\n\
         \x20          (six, 41, 34), (six, 41, 35), (tcp, 0, 64), (six, 41, 64), (tcp, 0, 65), (tcp, 0, 96)]\n\
         tell([o[1:] for o in options if attempt(o[0].setsockopt, o[1], o[2], b'\\1\\0\\0\\0' * 4) != 'ENOPROTOOPT'])\n\
         tell([o[1:] for o in options if call(54, o[0].fileno(), 0x100000000 + o[1], 0x700000000 + o[2], b'\\1\\0\\0\\0', 4) != 'ENOPROTOOPT'])",
        "[]\n[]",
    ),
    probe(
        "SC7-ioctl-and-prctl",
        "ours, theirs = os.openpty()\n\
         tell(*[call(16, ours, n, b'x') for n in (0x5412, 0x541c, 0x5760, 0x5761, 0x100005412)])\n\
         tell(call(157, 22, 2, 0), call(157, 35, 1, 0, 0, 0), call(157, 67, 1, 0, 0, 0), call(157, 62, 1, 0, 0, 0))\n\
         os.close(ours); os.close(theirs)",
        "EPERM\nEPERM\nEPERM\nEPERM\nEPERM\nEPERM\nEPERM\nEPERM\nEPERM",
    ),
    probe(
        "SC7-personality",
        "tell(call(135, 0xffffffff), call(135, 0), *[call(135, n) for n in (8, 0x0040000, 0x0400000, 0x4000000)])",
        "ok\nok\nEPERM\nEPERM\nEPERM\nEPERM",
    ),
    probe(
        "SC8-no-tracing",
        "pid = os.fork()\n\
         if pid == 0: time.sleep(30); os._exit(0)\n\
         tell(*[call(101, request, pid, 0, 0) for request in (16, 0x4206)], call(101, 0, 0, 0, 0))\n\
         tell(call(310, pid, b'x' * 16, 1, b'x' * 16, 1, 0), call(311, pid, b'x' * 16, 1, b'x' * 16, 1, 0))\n\
         os.kill(pid, 9); os.waitpid(pid, 0)",
        "EPERM\nEPERM\nEPERM\nEPERM\nEPERM",
    ),
    probe(
        "SC9-filters-are-in-force",
        "tell(status('Seccomp'), int(status('Seccomp_filters')) >= 7, call(317, 1, 0, 0))",
        "2\nTrue\nEPERM",
    ),
    probe(
        "SC9-ordinary-programs-work",
        "import sqlite3, multiprocessing, tempfile\n\
         db = sqlite3.connect('/tmp/x.db'); db.execute('create table t (a)'); db.execute('insert into t values (7)')\n\
         pool = multiprocessing.get_context('fork').Pool(2)\n\
         tell(db.execute('select a from t').fetchall(), pool.map(abs, [-1, -2])); pool.terminate(); pool.join()\n\
         tell(subprocess.check_output('tar cf - /etc/passwd 2>/dev/null | tar tf - && sleep 0 && echo done', shell=True, text=True).strip())",
        "[(7,)]\n[1, 2]\netc/passwd\ndone",
    ),
    // Landlock.
    probe(
        "LL2-nothing-is-executed-as-data",
        "tell(attempt(open, '/proc/sys/kernel/ns_last_pid', 'w') in ('EACCES', 'EROFS', 'ENOENT'))\n\
         tell(call(446, -1, 0))",
        "True\nEBADF",
    ),
    probe(
        "LL2-signals-stay-inside",
        "def inside():\n    return 0 if attempt(os.kill, os.getppid(), 0) == 'ok' else 1\n\
         tell(child(inside))",
        "exit 0",
    ),
    // Resources that bound themselves.
    probe(
        "RS5-limits-are-hard",
        "limits = ('CORE', 'NOFILE', 'MEMLOCK', 'MSGQUEUE', 'SIGPENDING', 'RTPRIO', 'NICE', 'NPROC')\n\
         tell(*[resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[1] for n in limits])\n\
         tell({attempt(resource.setrlimit, getattr(resource, 'RLIMIT_' + n), (1 << 40, 1 << 40)) for n in limits})",
        "0\n4096\n65536\n0\n256\n0\n0\n96\n{'ValueError'}",
    ),
    probe(
        "RS3-no-real-time",
        "tell(attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)), attempt(os.nice, -5))",
        "EPERM\nEPERM",
    ),
    probe(
        "RS3-its-slice-is-not-its-own-to-say",
        // sched_setattr(2), with the ordinary policy and a slice of 0.1 ms.
        "tell(call(314, 0, struct.pack('IIQiIQQQ', 48, 0, 0, 0, 0, 100000, 0, 0), 0))",
        "EPERM",
    ),
    probe(
        "RS1-goes-first",
        "tell(text('/proc/self/oom_score_adj').strip(), attempt(lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')))",
        "1000\nEACCES",
    ),
    probe("RS8-input-is-empty", "tell(os.read(0, 10), os.readlink('/proc/self/fd/0'))", "b''\n/dev/null"),
    // The agent.
    probe(
        "ZG2-nothing-was-there-before",
        "tell([line for line in text('/proc/self/environ').split(chr(0)) if 'CANARY' in line.upper()])\n\
         tell(sum(1 for p in os.listdir('/tmp') if p.startswith('.') and p not in ('.ipython', '.matplotlib')))",
        "[]\n0",
    ),
    probe(
        "ZG4-fork-returns-once",
        "pid = os.fork()\n\
         if pid: os.waitpid(pid, 0); tell('parent')",
        "parent",
    ),
];
