//! A network in which every address is the sandbox's own, and the listeners that answer at them.
//!
//! With one route that says so, whatever a program connects to ends at a listener of its own network namespace: there is no
//! way for a packet to anywhere else. A listener belongs to the namespace it was made in, whoever accepts on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// TCP ports that are listened at, in the order in which listeners are handed over; then comes UDP at 53.
pub const PORTS: [u16; 5] = [80, 443, 3128, 1080, 53];

/// The loopback interface: the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Connections of a sandbox that wait to be accepted, at each listener.
const BACKLOG: i32 = 128;

/// An address of its own for the loopback interface: without any but 127.0.0.1, resolvers believe that there is no network and
/// answer no question for one version alone.
const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const REQUEST_CREATE_ACK: u16 = 0x1 | 0x400 | 0x4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Makes every address of the calling process's network namespace its own. The loopback interface is up.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in it.
pub fn own_every_address() -> io::Result<()> {
    // Protocol 0 is that of routes.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // `struct ifaddrmsg` and its attributes IFA_ADDRESS and IFA_LOCAL.
    let address = [
        [AF_INET, 32, 0, 0].as_slice(),
        &LOOPBACK.to_ne_bytes(),
        &attribute(1, &OWN.octets()),
        &attribute(2, &OWN.octets()),
    ];
    ask(&socket, RTM_NEWADDR, &address.concat())?;
    ask(&socket, RTM_NEWROUTE, &local_route(AF_INET))?;
    // A host may be without version 6: then nothing of it is reached in a sandbox, at once, and programs take the other.
    let _ = ask(&socket, RTM_NEWROUTE, &local_route(AF_INET6));
    Ok(())
}

/// `local default dev lo`: a `struct rtmsg` with the attribute RTA_OIF. Table 255 is that of the kernel's own addresses, protocol 3
/// says that nobody's daemon made it, scope 254 that it ends here, and type 2 that it is ours.
fn local_route(family: u8) -> Vec<u8> {
    [[family, 0, 0, 0, 255, 3, 254, 2, 0, 0, 0, 0].as_slice(), &attribute(4, &LOOPBACK.to_ne_bytes())].concat()
}

/// An attribute of four bytes.
fn attribute(kind: u16, value: &[u8; 4]) -> Vec<u8> {
    [8_u16.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), value].concat()
}

/// Asks the kernel for one thing, and hears whether it was done.
fn ask(socket: &OwnedFd, kind: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_CREATE_ACK.to_ne_bytes());
    // Its number, and the port of who asks, which is the kernel's to fill in.
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(socket, &message, rustix::net::SendFlags::empty())?;
    let mut answer = [0; 512];
    let (count, _) = rustix::net::recv(socket, &mut answer, rustix::net::RecvFlags::empty())?;
    // NLMSG_ERROR, with 0 or a negative error number.
    match answer[..count].get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Listens at every address: TCP at [`PORTS`], then UDP at 53. None of them waits.
///
/// # Errors
/// `EADDRINUSE`, `EACCES` and the like.
pub fn listeners() -> io::Result<Vec<OwnedFd>> {
    let mut all = PORTS.iter().map(|port| bound(SocketType::STREAM, *port)).collect::<io::Result<Vec<_>>>()?;
    for listener in &all {
        rustix::net::listen(listener, BACKLOG)?;
    }
    all.push(bound(SocketType::DGRAM, 53)?);
    Ok(all)
}

/// A socket at every address of both versions, or of version 4 where there is no other.
fn bound(kind: SocketType, port: u16) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, any): (OwnedFd, IpAddr) = match rustix::net::socket_with(AddressFamily::INET6, kind, flags, None) {
        Ok(socket) => {
            sockopt::set_ipv6_v6only(&socket, false)?;
            (socket, Ipv6Addr::UNSPECIFIED.into())
        }
        Err(rustix::io::Errno::AFNOSUPPORT) => {
            (rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?, Ipv4Addr::UNSPECIFIED.into())
        }
        Err(error) => return Err(error.into()),
    };
    rustix::net::bind(&socket, &SocketAddr::new(any, port))?;
    Ok(socket)
}
