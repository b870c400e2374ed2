//! Memory of this process that the ring knows by a number, as it knows that of requesters.
//!
//! The driver of block devices gives a place to the memory of each request. This gives one to
//! memory of this process, so that reads to places can be tried on a machine without that driver.

use std::io;
use std::ops::Range;

use ubcache_env::Place;

use crate::mapping::Mapping;
use crate::reactor::HostEnv;

/// Memory with a place in the table of the host's ring.
pub struct RegisteredMemory {
    env: HostEnv,
    /// Below 4 GiB: the ring counts bytes of it from address 0, and [`Place`] has 32 bits for them.
    memory: Mapping,
    bytes: usize,
    numbers: Range<u16>,
}

impl RegisteredMemory {
    /// So many bytes, all of them zero.
    ///
    /// # Errors
    /// The host has no io_uring, or the kernel has no table or no such memory.
    pub fn new(env: &HostEnv, bytes: usize) -> io::Result<RegisteredMemory> {
        let numbers = env.core().take_places(1).ok_or(io::ErrorKind::Unsupported)?;
        let memory = Mapping::low(bytes)?;
        let content = libc::iovec { iov_base: memory.place(0).cast(), iov_len: bytes };
        // SAFETY: the mapping lives as long as the value below, which takes it away from there.
        unsafe { env.core().put_memory(numbers.start, Some(content)) }?;
        Ok(RegisteredMemory { env: env.clone(), memory, bytes, numbers })
    }

    /// The place of a byte of it.
    pub fn place(&self, at: usize) -> Place {
        let at = (self.memory.place(at) as usize).try_into().expect("below 4 GiB");
        Place { number: self.numbers.start.into(), at }
    }

    /// Its content, when no read to it is under way.
    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; self.bytes];
        self.memory.copy_to(0, &mut content);
        content
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // SAFETY: nothing is put there. The kernel keeps the pages of reads that are under way.
        let _ = unsafe { self.env.core().put_memory(self.numbers.start, None) };
        self.env.core().give_places_back(&self.numbers);
    }
}
