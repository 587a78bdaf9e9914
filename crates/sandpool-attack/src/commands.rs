//! What commands try: the same walls stand around them.

use crate::{Probe, probe};

/// For `/bin/bash`, one after another in one session of a shell pool.
pub const COMMANDS: &[Probe] = &[
    probe("ID2-commands-too", "id -u; id -g; id -G", "1000\n1000\n1000"),
    probe(
        "ID4-commands-too",
        "grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '",
        "CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 CapBnd:0000000000000000 \
         CapAmb:0000000000000000 NoNewPrivs:1 Seccomp:2",
    ),
    probe("NS3-commands-get-three", "exec ls -x /proc/self/fd", "0  1  2  3"),
    probe(
        "NS2-orphans-are-reaped",
        "(true & true) & sleep 0.2; (setsid true &) ; sleep 0.2; grep -l ') Z' /proc/[0-9]*/stat",
        "",
    ),
    probe("FS2-commands-write-nothing", "touch /usr/x /etc/x / 2>&1 | grep -c 'Read-only'", "3"),
    probe("ID5-commands-cannot-become-root", "su -c id root </dev/null >/dev/null 2>&1 || echo refused", "refused"),
    probe(
        "SC2-commands-make-no-namespaces",
        "for what in -U -m -n -p -i -u -C; do unshare $what true 2>/dev/null && echo $what; done; echo tried",
        "tried",
    ),
    probe("SC3-commands-mount-nothing", "mount -t tmpfs none /tmp 2>/dev/null || echo refused", "refused"),
    probe("FS5-commands-make-no-devices", "mknod /tmp/disk b 8 0 2>/dev/null || echo refused", "refused"),
    probe("NS2-commands-kill-no-agent", "kill -9 1 2>/dev/null; cat /proc/1/environ 2>/dev/null | wc -c", "0"),
    probe(
        "NS1-commands-reach-nothing",
        "for host in 1.1.1.1/80 169.254.169.254/80 127.0.0.1/22; do (exec 3<>/dev/tcp/$host) 2>/dev/null && echo $host; done; echo tried",
        "tried",
    ),
    probe(
        "RS5-commands-have-the-limits",
        "ulimit -Hn; ulimit -Hc; ulimit -Hu; (ulimit -Hn unlimited) 2>/dev/null || echo refused",
        "4096\n0\n96\nrefused",
    ),
];
