//! Messages with open files over Unix sockets, and eventfds that a peer has passed.
//!
//! Every call waits for the descriptor to be ready and then makes a system call that does not
//! block, with both backends: whatever the peer does with what it shares, this thread goes on, and
//! a dropped future loses nothing.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use ubcache_env::{Bell, Channel, PassedFiles, Received, StreamError};

use crate::reactor::HostEnv;
use crate::socket::{HostSocket, readiness, stream_error};
use crate::sys;

/// Files that one message carries at most, as Linux permits (SCM_MAX_FD).
const FILES_MAX: usize = 253;

fn os_error(error: &io::Error) -> StreamError {
    stream_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Returns true if the call is to be made again, when the descriptor is ready.
fn is_early(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::INTR)
}

/// Receives bytes and files without blocking.
fn recv_now(socket: &OwnedFd, bytes_max: usize) -> Result<Received, Errno> {
    let mut bytes = vec![0; bytes_max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(received.bytes);
    Ok(Received { bytes, files })
}

/// Sends bytes and files without blocking; returns how many bytes were sent.
fn send_now(socket: &OwnedFd, bytes: &[u8], files: &[OwnedFd]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

/// A Unix socket that carries bytes and open files. Dropping it ends the connection.
#[derive(Debug)]
pub struct HostChannel {
    env: HostEnv,
    socket: HostSocket,
}

impl HostChannel {
    /// Carries messages over a connected Unix socket.
    pub fn over(env: &HostEnv, socket: HostSocket) -> HostChannel {
        HostChannel { env: env.clone(), socket }
    }
}

impl Channel for HostChannel {
    async fn recv(&self, bytes_max: usize) -> Result<Received, StreamError> {
        loop {
            readiness(&self.env, &self.socket.fd, libc::POLLIN)
                .await
                .map_err(|error| os_error(&error))?;
            match recv_now(&self.socket.fd, bytes_max) {
                Err(error) if is_early(error) => {}
                received => return received.map_err(|error| stream_error(error.raw_os_error())),
            }
        }
    }

    async fn send(&self, bytes: Vec<u8>, mut files: Vec<OwnedFd>) -> Result<(), StreamError> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match send_now(&self.socket.fd, rest, &files) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    files.clear();
                }
                Err(error) if is_early(error) => {
                    readiness(&self.env, &self.socket.fd, libc::POLLOUT)
                        .await
                        .map_err(|error| os_error(&error))?;
                }
                Err(error) => return Err(stream_error(error.raw_os_error())),
            }
        }
        Ok(())
    }

    fn close(&self) {
        sys::shutdown(&self.socket.fd);
    }
}

/// An eventfd that a peer has passed.
#[derive(Debug)]
pub struct HostBell {
    env: HostEnv,
    fd: Rc<OwnedFd>,
}

impl Bell for HostBell {
    async fn rung(&self) -> Result<(), StreamError> {
        loop {
            readiness(&self.env, &self.fd, libc::POLLIN).await.map_err(|error| os_error(&error))?;
            let mut count = [0; 8];
            // Never waits, also if the peer has taken the count meanwhile and made the descriptor
            // a blocking one: both processes share its flags.
            let present = u64::MAX;
            let room = &mut [IoSliceMut::new(&mut count)];
            match rustix::io::preadv2(&self.fd, room, present, ReadWriteFlags::NOWAIT) {
                Ok(8) => return Ok(()),
                Ok(_) => return Err(StreamError::Closed),
                Err(error) if is_early(error) => {}
                Err(error) => return Err(stream_error(error.raw_os_error())),
            }
        }
    }

    fn ring(&self) {
        sys::eventfd_signal(self.fd.as_raw_fd());
    }
}

impl PassedFiles for HostEnv {
    type Bell = HostBell;
    type Channel = HostChannel;

    fn bell(&self, file: OwnedFd) -> io::Result<HostBell> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if path.as_os_str() != "anon_inode:[eventfd]" {
            let found = format!("an eventfd was expected, found {}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
        }
        // A full counter must not hold this thread up.
        sys::set_nonblocking(&file, true)?;
        Ok(HostBell { env: self.clone(), fd: Rc::new(file) })
    }

    fn channel(&self, socket: OwnedFd) -> io::Result<HostChannel> {
        Ok(HostChannel::over(self, HostSocket::over(self, socket)))
    }

    fn memory_file(&self, bytes: u64) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("ubcache", flags)?);
        file.set_len(bytes)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file)
    }
}
