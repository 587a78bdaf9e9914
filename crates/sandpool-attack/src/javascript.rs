//! What JavaScript tries: the same walls stand around Node.

use crate::{Probe, probe};

/// For Node, one after another in one session.
pub const JAVASCRIPT: &[Probe] = &[
    probe(
        "ID2-javascript-has-uid-1000",
        "console.log(process.getuid(), process.geteuid(), process.getgid(), process.getgroups().filter(g => g !== 1000).length)",
        "1000 1000 1000 0",
    ),
    probe(
        "ID2-javascript-cannot-become-root",
        "for (const set of ['setuid', 'setgid', 'setegid', 'seteuid']) { try { process[set](0); console.log(set) } catch (error) { console.log(error.code) } }",
        "EPERM\nEPERM\nEPERM\nEPERM",
    ),
    probe(
        "ID4-javascript-has-no-rights",
        "console.log(require('fs').readFileSync('/proc/self/status', 'utf8').match(/(CapEff|CapBnd|NoNewPrivs|Seccomp):\\s*\\w+/g).join(' ').replace(/\\s+/g, ' '))",
        "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2",
    ),
    probe(
        "FS2-javascript-writes-nothing",
        "for (const place of ['/', '/usr', '/etc', '/var', '/dev', '/proc']) { try { require('fs').writeFileSync(place + '/x', 'x'); console.log(place) } catch (error) { console.log(error.code) } }",
        "EROFS\nEROFS\nEROFS\nEROFS\nEROFS\nENOENT",
    ),
    probe(
        "FS6-javascript-sees-a-masked-proc",
        "for (const name of ['kcore', 'keys', 'kallsyms', 'sysrq-trigger', '1/environ', '1/mem']) { try { const text = require('fs').readFileSync('/proc/' + name); if (text.length) console.log(name, text.length) } catch {} } console.log('tried')",
        "tried",
    ),
    probe(
        "FS8-javascript-finds-no-sockets",
        "console.log(['/run', '/var/run', '/tmp'].flatMap(d => { try { return require('fs').readdirSync(d, { recursive: true }).filter(f => { try { return require('fs').statSync(d + '/' + f).isSocket() } catch { return false } }) } catch { return [] } }).length)",
        "0",
    ),
    probe(
        "NS1-javascript-reaches-nothing",
        "const reach = (host, port) => new Promise(done => { const there = require('net').connect({ host, port, timeout: 5000 }); there.on('connect', () => { there.destroy(); done('open') }); there.on('timeout', () => { there.destroy(); done('ENETUNREACH') }); there.on('error', error => done(error.code)) });\n\
         for (const [host, port] of [['1.1.1.1', 80], ['169.254.169.254', 80], ['10.0.0.1', 443], ['127.0.0.1', 22], ['::1', 22]]) console.log(await reach(host, port))",
        "ENETUNREACH\nENETUNREACH\nENETUNREACH\nECONNREFUSED\nECONNREFUSED",
    ),
    probe(
        "NS2-javascript-cannot-end-the-agent",
        "for (const signal of [0, 'SIGTERM', 'SIGKILL']) { try { process.kill(1, signal); console.log('sent') } catch (error) { console.log(error.code) } }",
        "EPERM\nEPERM\nEPERM",
    ),
    probe(
        "NS3-a-program-of-javascript-gets-three",
        "console.log(require('child_process').execFileSync('ls', ['/proc/self/fd'], { encoding: 'utf8' }).trim().split('\\n').join(' '))",
        "0 1 2 3",
    ),
    probe(
        "SC2-javascript-makes-no-namespaces",
        "for (const what of ['-U', '-m', '-n', '-p']) { const made = require('child_process').spawnSync('unshare', [what, 'true']); if (made.status === 0) console.log(what) } console.log('tried')",
        "tried",
    ),
    probe(
        "ZG2-javascript-finds-no-secrets",
        "console.log(Object.keys(process.env).filter(name => /TOKEN|SECRET|PASSWORD|CREDENTIAL|CANARY|API_?KEY/i.test(name)).length)",
        "0",
    ),
    probe(
        "ZG4-javascript-does-not-end-the-session",
        "try { process.exit(3) } catch (error) { console.log(error.message) }",
        "process.exit(3)",
    ),
];
