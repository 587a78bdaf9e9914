//! Packets with descriptors, over sockets that keep packets apart.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Descriptors that one packet can carry.
pub const MAX_DESCRIPTORS: usize = 8;

/// Sends one packet, without waiting.
///
/// # Errors
/// `WouldBlock` when there is no room for it; `BrokenPipe` when the other end is closed; `InvalidInput` for more than
/// [`MAX_DESCRIPTORS`].
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)? {
        count if count == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Receives one packet into `buffer`, without waiting; answers its length, which is 0 when the other end is closed, and its
/// descriptors, which close themselves at exec.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for one that is longer than the buffer or carries too many descriptors.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    match receive_what_fits(socket, buffer)? {
        (length, Some(fds)) => Ok((length, fds)),
        (_, None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// As [`receive`], from somebody who is trusted: `None` in place of the descriptors when not all of them could be had, since this process
/// may have no more, or there were too many. Those that could are closed.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for one that is longer than the buffer.
pub fn receive_what_fits(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<Vec<OwnedFd>>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, (!received.flags.contains(ReturnFlags::CTRUNC)).then_some(fds)))
}
