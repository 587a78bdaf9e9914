//! Sockets between a machine and what is around it (`AF_VSOCK`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The address of whoever is around a machine.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

/// Listens at a port of this machine.
///
/// # Errors
/// `EAFNOSUPPORT` where the kernel has no such sockets, `ENODEV` where this is no machine.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `socket` takes integers.
    let socket = check(unsafe { libc::socket(libc::AF_VSOCK, flags, 0) })?;
    // SAFETY: it is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros are such an address.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_vm>() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address outlives the call, and is as long as is said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: `listen` takes integers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 4) })?;
    Ok(socket)
}

/// Takes a connection, which does not block, and says whose it is.
///
/// # Errors
/// `WouldBlock` where there is none.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: all zeros are such an address.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_vm>() };
    let mut length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    let (flags, place) = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, (&raw mut address).cast());
    // SAFETY: the kernel writes no more than `length` bytes to the address; both outlive the call.
    let socket = check(unsafe { libc::accept4(listener.as_fd().as_raw_fd(), place, &raw mut length, flags) })?;
    // SAFETY: it is new, and nobody else's.
    Ok((unsafe { OwnedFd::from_raw_fd(socket) }, address.svm_cid))
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
