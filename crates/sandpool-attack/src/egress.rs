//! What is tried where there is a way out that leads nowhere: to a name that nobody has ([`ALLOWED`]).
//!
//! A probe with `ask` hears from our own proxy when the wall holds: 403 for what is not allowed, 400 for what is no host. Any other
//! status would be somebody else's answer.

use crate::{Probe, probe};

/// The one host that the pool's policy allows. It does not exist (RFC 6761), so nothing outside is ever asked.
pub const ALLOWED: &str = "allowed.invalid";

/// Python, one after another in one session of a pool whose egress allows [`ALLOWED`] alone.
pub const EGRESS: &[Probe] = &[
    probe(
        "EG3-metadata-services",
        "tell(*[ask(a) for a in ('169.254.169.254', '169.254.170.2', '100.100.100.200', '192.0.0.192', '168.63.129.16', 'fd00:ec2::254')])",
        "403\n403\n403\n403\n403\n403",
    ),
    probe(
        "EG3-metadata-in-other-spellings",
        "tell(*[ask(a) for a in ('::ffff:169.254.169.254', '64:ff9b::a9fe:a9fe', '2002:a9fe:a9fe::', '::a9fe:a9fe')])",
        "403\n403\n403\n403",
    ),
    probe(
        "EG3-private-networks",
        "tell(*[ask(a) for a in ('10.0.0.1', '172.16.0.1', '192.168.0.1', '100.64.0.1', '169.254.1.1', 'fe80::1%lo', 'fc00::1')])",
        "403\n403\n403\n403\n403\n403\n403",
    ),
    probe(
        "EG3-public-addresses-that-nobody-named",
        "tell(ask('1.1.1.1'), ask('8.8.8.8'), ask('2606:4700:4700::1111'))",
        "403\n403\n403",
    ),
    probe(
        "EG3-a-name-of-the-metadata-service",
        "tell(*[ask('1.1.1.1', host) for host in ('metadata.google.internal', 'localhost', '169.254.169.254', '0xa9fea9fe', '2852039166', '0251.0376.0251.0376')])",
        "403\n403\n403\n400\n400\n400",
    ),
    probe(
        "EG1-names-that-are-not-allowed-do-not-exist",
        "def look(name):\n\
         \x20   try: return socket.getaddrinfo(name, 80)[0][4][0]\n\
         \x20   except OSError as error: return type(error).__name__\n\
         tell(*[look(n) for n in ('example.com', 'localhost.example', 'allowed.invalid.example.com', 'x.allowed.invalid')])",
        "gaierror\ngaierror\ngaierror\ngaierror",
    ),
    probe(
        "EG1-an-allowed-name-stands-for-itself",
        "import ipaddress\n\
         tell(all(ipaddress.ip_address(a[4][0]) in ipaddress.ip_network('198.18.0.0/15') or ipaddress.ip_address(a[4][0]) in ipaddress.ip_network('fd5a:6e64:706f::/96') for a in socket.getaddrinfo('allowed.invalid', 80)))",
        "True",
    ),
    probe(
        "EG1-other-servers-of-names",
        "def question(server, name):\n\
         \x20   query = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(p)]) + p.encode() for p in name.split('.')) + b'\\0\\0\\x01\\0\\x01'\n\
         \x20   asking = socket.socket(type=socket.SOCK_DGRAM); asking.settimeout(5)\n\
         \x20   asking.sendto(query, (server, 53))\n\
         \x20   return asking.recv(512)[3] & 15\n\
         tell(*[question(s, 'example.com') for s in ('8.8.8.8', '1.1.1.1', '127.0.0.1')])",
        "3\n3\n3",
    ),
    probe(
        "EG1-tunnels-through-questions",
        "tell({question('8.8.8.8', f'{hashlib.sha256(bytes([n])).hexdigest()[:50]}.tunnel.example') for n in range(20)})",
        "{3}",
    ),
    probe(
        "EG4-another-host-than-the-name-leads-to",
        "there = socket.getaddrinfo('allowed.invalid', 80)[0][4][0]\n\
         tell(*[ask(there, host) for host in ('example.com', 'allowed.invalid@example.com', '', 'allowed.invalid:8080')])",
        "403\n400\n400\n403",
    ),
    probe(
        "EG4-host-tricks",
        "tell(*[ask(there, host) in ('400', '403', 'closed') for host in ('allowed.invalid\\r\\nHost: example.com', 'allowed.invalid\\0.example.com', 'example.com\\tallowed.invalid', 'allowed.invalid, example.com')])",
        "True\nTrue\nTrue\nTrue",
    ),
    probe(
        "EG4-another-name-in-tls",
        "tell(*[hello(name, there) != 'open' for name in ('example.com', 'localhost', None)], hello('allowed.invalid', '1.1.1.1') != 'open')",
        "True\nTrue\nTrue\nTrue",
    ),
    probe(
        "EG4-tunnels-by-connect",
        "tell(*[through(t) in ('400', '403') for t in ('169.254.169.254:80', '[::1]:22', 'localhost:22', '127.0.0.1:22', 'example.com:443', 'allowed.invalid:22', '0x7f.1:80', '[::ffff:7f00:1]:22', 'allowed.invalid@127.0.0.1:22')])",
        "True\nTrue\nTrue\nTrue\nTrue\nTrue\nTrue\nTrue\nTrue",
    ),
    probe(
        "EG4-tunnels-by-socks",
        "tell(*[socks(*t) for t in ((1, bytes([169, 254, 169, 254]), 80), (1, bytes([127, 0, 0, 1]), 22), (3, b'\\x09localhost', 22), (3, b'\\x0bexample.com', 443), (4, bytes(15) + b'\\1', 22))])",
        "2\n2\n2\n2\n2",
    ),
    probe(
        "EG4-other-ports",
        "tell(*[attempt(socket.create_connection, ('198.18.0.1', port), 5) for port in (22, 25, 8080, 6443, 2375, 3306)])",
        "ECONNREFUSED\nECONNREFUSED\nECONNREFUSED\nECONNREFUSED\nECONNREFUSED\nECONNREFUSED",
    ),
    probe(
        "EG4-no-quic",
        "def datagram(port):\n\
         \x20   out = socket.socket(type=socket.SOCK_DGRAM); out.settimeout(2); out.connect(('1.1.1.1', port))\n\
         \x20   try: out.send(b'\\xc0' + bytes(1199)); out.recv(2048); return 'heard'\n\
         \x20   except OSError: return 'nothing'\n\
         tell(datagram(443), datagram(123), datagram(4433))",
        "nothing\nnothing\nnothing",
    ),
];
