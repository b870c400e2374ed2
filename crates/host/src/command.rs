//! Character devices whose drivers take commands of io_uring: those that hand out requests, and
//! those that control them.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use ubcache_env::{Buf, Command, CommandDevice, IoVec};

use crate::mapping::Mapping;
use crate::op::{IoRequest, fill_list};
use crate::reactor::HostEnv;
use crate::sys;

/// A character device that hands out requests. Its commands go by the ring of the host's thread:
/// without io_uring they fail with EOPNOTSUPP.
pub struct HostCommands {
    env: HostEnv,
    fd: Rc<OwnedFd>,
    pages: Mapping,
    path: PathBuf,
    list: RefCell<Vec<libc::iovec>>,
    /// Numbers of the places of its slots.
    places: Option<Range<u16>>,
}

impl HostCommands {
    /// Opens the device and maps `len` bytes, from its position `at` on, of what its driver shares.
    pub fn open(env: &HostEnv, path: &Path, at: u64, len: usize) -> io::Result<HostCommands> {
        let fd: OwnedFd = std::fs::File::options().read(true).write(true).open(path)?.into();
        HostCommands::over(env, Rc::new(fd), path, at, len)
    }

    fn over(
        env: &HostEnv,
        fd: Rc<OwnedFd>,
        path: &Path,
        at: u64,
        len: usize,
    ) -> io::Result<HostCommands> {
        let pages = Mapping::new(fd.as_fd(), at, len, false)?;
        let (env, path, list) = (env.clone(), path.to_owned(), RefCell::default());
        Ok(HostCommands { env, fd, pages, path, list, places: None })
    }

    /// Lets the driver give a place to the data of each of so many slots, if the ring has such.
    #[must_use]
    pub fn with_places(mut self, slots: u16) -> HostCommands {
        self.places = self.env.core().take_places(slots);
        self
    }

    /// The same open device with another part of what its driver shares: of another queue.
    pub fn with_part(&self, at: u64, len: usize) -> io::Result<HostCommands> {
        HostCommands::over(&self.env, self.fd.clone(), &self.path, at, len)
    }
}

impl Drop for HostCommands {
    fn drop(&mut self) {
        if let Some(numbers) = &self.places {
            self.env.core().give_places_back(numbers);
        }
    }
}

impl CommandDevice for HostCommands {
    fn place(&self, slot: u16) -> Option<u32> {
        let numbers = self.places.as_ref()?;
        (slot < numbers.len() as u16).then(|| u32::from(numbers.start + slot))
    }

    async fn command(&self, command: Command, memory: Option<Buf>) -> (Option<Buf>, i32) {
        let request = IoRequest::Command { fd: self.fd.clone(), command, memory };
        let (IoRequest::Command { memory, .. }, outcome) = self.env.core().submit(request).await
        else {
            unreachable!("an operation gives its own request back")
        };
        let result = match outcome {
            Ok(result) => i32::try_from(result).unwrap_or(i32::MAX),
            Err(errno) => -errno,
        };
        (memory, result)
    }

    fn shared(&self, at: usize, into: &mut [u8]) {
        // The driver changes these bytes only before the completion that the caller has seen.
        self.pages.copy_to(at, into);
    }

    fn copy_out(&self, at: u64, into: &mut [u8]) -> Result<(), i32> {
        self.env.core().copies().count(into.len());
        whole(sys::copy_out(self.fd.as_raw_fd(), into, at), into.len())
    }

    fn copy_in(&self, at: u64, from: &IoVec) -> Result<(), i32> {
        self.env.core().copies().count(from.len());
        let mut list = self.list.borrow_mut();
        let mut done = 0;
        // A scatter list of the longest length is seldom not enough.
        while done < from.len() {
            fill_list(&mut list, from, done, usize::MAX);
            let bytes: usize = list.iter().map(|part| part.iov_len).sum();
            let (fd, at) = (self.fd.as_raw_fd(), at + done as u64);
            // SAFETY: the list has just been made from memory that `from` holds.
            let written = unsafe { sys::pwritev(fd, list.as_ptr(), list.len(), at, 0) };
            whole(written, bytes)?;
            done += bytes;
        }
        Ok(())
    }
}

/// An error unless all bytes were copied: the requester is gone, or its memory is smaller.
fn whole(result: i32, bytes: usize) -> Result<(), i32> {
    match result {
        code if code < 0 => Err(-code),
        count if count as usize == bytes => Ok(()),
        _ => Err(libc::EIO),
    }
}

/// Gives the driver behind a control device a command of 32 bytes, whose memory is `data`, on a
/// ring of its own, and waits for its end: a result, or a negative errno. It may take its time: not
/// for the thread of a host. `address_at`: the byte of the command with the address of the data.
pub fn control(
    device: &OwnedFd,
    code: u32,
    mut command: [u8; 32],
    address_at: usize,
    data: &mut [u8],
) -> io::Result<i32> {
    let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(4)?;
    if !data.is_empty() {
        let address = data.as_mut_ptr() as u64;
        command[address_at..address_at + 8].copy_from_slice(&address.to_ne_bytes());
    }
    let mut room = [0; 80];
    room[..32].copy_from_slice(&command);
    let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), code).cmd(room).build();
    // SAFETY: the data outlives the command: its completion is waited for below.
    if unsafe { ring.submission().push(&entry) }.is_err() {
        return Err(io::Error::other("a new ring has no room"));
    }
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The driver may still use the data: without an answer there is no way on.
            Err(error) => panic!("a control command has no end: {error}"),
        }
        if let Some(completion) = ring.completion().next() {
            return Ok(completion.result());
        }
    }
}
