//! Kept memory in a file: what a process has put there outlives it, and no restart of the host.
//!
//! ```text
//!  0        8         12  16          32         80         88     96     104        4096
//!  │ magic  │ version │   │ set UUID  │ boot id  │ capacity │ front│ end  │    …     │ a ring of bytes
//! ```
//!
//! The file is mapped, so a store is all that it takes to put something there, and what was stored
//! is in the page cache when the process is killed at the next instruction. `front` and `end` count
//! all bytes that were given up and put in; each change of the queue is one store to one of them.
//! The file belongs to one set and one boot of the host: any other is begun anew.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ubcache_env::KeptMemory;

use crate::mapping::Mapping;
use crate::{memory, sys};

const MAGIC: &[u8; 8] = b"ubckept\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
const SET_AT: usize = 16;
const BOOT_AT: usize = 32;
const BOOT_BYTES: usize = 48;
const CAPACITY_AT: usize = 80;
const FRONT_AT: usize = 88;
const END_AT: usize = 96;
/// Bytes of the header that say what the file is.
const NAME_BYTES: usize = FRONT_AT;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Kept memory that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}: {source}", path = path.display())]
pub struct KeptError {
    /// The file.
    pub path: PathBuf,
    /// The step that failed.
    pub what: &'static str,
    /// The error.
    pub source: io::Error,
}

impl KeptError {
    /// Returns true if another process has it, which may be about to end.
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::ResourceBusy
    }
}

/// A file that is mapped as kept memory. Locked as long as this process has it.
#[derive(Debug)]
pub struct HostKept {
    map: Mapping,
    capacity: usize,
    /// Holds the lock.
    _file: File,
}

impl HostKept {
    /// Opens the kept memory of a set, of so many bytes. It is empty if the file is new, or of
    /// another set, another size or an earlier boot.
    ///
    /// # Errors
    /// The file can't be made, opened or mapped, its file system has no room, it is another user's,
    /// or another process has it.
    pub fn open(path: &Path, set: [u8; 16], capacity: usize) -> Result<HostKept, KeptError> {
        let failed = |what| move |source| KeptError { path: path.to_owned(), what, source };
        let boot = std::fs::read_to_string(BOOT_ID).map_err(|source| KeptError {
            path: BOOT_ID.into(),
            what: "reading the number of this boot",
            source,
        })?;
        let file = open_own(path).map_err(failed("opening the kept memory"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(failed("locking it")(source)),
            Err(TryLockError::WouldBlock) => {
                let source = io::Error::from(io::ErrorKind::ResourceBusy);
                return Err(failed("another process has it")(source));
            }
        }
        let name = name_of(set, boot.trim(), capacity);
        let bytes = HEADER_BYTES + capacity;
        if !goes_on(&file, &name, bytes) {
            begin(&file, &name, bytes).map_err(failed("making the kept memory"))?;
        }
        // A page without memory behind it would end the process when it is stored to.
        memory::allocate(&file, bytes as u64).map_err(failed("finding memory for it"))?;
        let map = Mapping::new(file.as_fd(), 0, bytes, true).map_err(failed("mapping it"))?;
        Ok(HostKept { map, capacity, _file: file })
    }

    fn counter(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is within the header and a multiple of 8, and mappings begin at a page. This
        // process has the file alone, and uses these words as atomics only.
        unsafe { AtomicU64::from_ptr(self.map.place(at).cast()) }
    }

    /// Both counters: the bytes given up, and the bytes put in.
    fn counters(&self) -> (u64, u64) {
        let load = |at| self.counter(at).load(Ordering::Acquire);
        (load(FRONT_AT), load(END_AT))
    }

    /// The parts of the ring from this byte on: offsets in the mapping, and lengths.
    fn parts(&self, from: u64, bytes: usize) -> [(usize, usize); 2] {
        assert!(bytes <= self.capacity, "no more bytes than there are");
        let at = (from % self.capacity as u64) as usize;
        let first = bytes.min(self.capacity - at);
        [(HEADER_BYTES + at, first), (HEADER_BYTES, bytes - first)]
    }
}

impl KeptMemory for HostKept {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn read(&self) -> Vec<u8> {
        let (front, end) = self.counters();
        let mut all = Vec::with_capacity((end - front) as usize);
        for (at, bytes) in self.parts(front, (end - front) as usize) {
            // SAFETY: `parts` are within the mapping, which lives as long as `self`; nobody stores
            // to it while this runs, as the process has the file alone and `HostKept` is not Sync.
            all.extend_from_slice(unsafe { std::slice::from_raw_parts(self.map.place(at), bytes) });
        }
        all
    }

    fn append(&self, bytes: &[u8]) {
        let (front, end) = self.counters();
        let used = (end - front) as usize;
        assert!(
            bytes.len() <= self.capacity - used,
            "{} bytes more than {used} of {}",
            bytes.len(),
            self.capacity
        );
        let mut rest = bytes;
        for (at, length) in self.parts(end, bytes.len()) {
            let (part, more) = rest.split_at(length);
            // SAFETY: `parts` are within the mapping, which nothing in this process points into
            // but for the time of a call; `bytes` lie elsewhere.
            unsafe { self.map.place(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            rest = more;
        }
        // From here on they are there: whoever reads this counter reads the bytes, too.
        self.counter(END_AT).store(end + bytes.len() as u64, Ordering::Release);
    }

    fn drop_front(&self, bytes: usize) {
        let (front, end) = self.counters();
        assert!(bytes as u64 <= end - front, "no more is given up than there is");
        self.counter(FRONT_AT).store(front + bytes as u64, Ordering::Release);
    }
}

/// Opens the file for this user alone.
fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let is = file.metadata()?;
    // Another user who could write to it, or cut it off, would choose what the set reads.
    if !is.is_file() || is.uid() != sys::user() || is.mode() & 0o077 != 0 {
        let what = format!(
            "found mode {:o} and owner {}, expected a file of mode 600 and of user {}: remove it",
            is.mode(),
            is.uid(),
            sys::user()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(file)
}

/// The beginning of the header.
fn name_of(set: [u8; 16], boot: &str, capacity: usize) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    name[..8].copy_from_slice(MAGIC);
    name[8..12].copy_from_slice(&VERSION.to_le_bytes());
    name[SET_AT..BOOT_AT].copy_from_slice(&set);
    let boot = &boot.as_bytes()[..boot.len().min(BOOT_BYTES)];
    name[BOOT_AT..BOOT_AT + boot.len()].copy_from_slice(boot);
    name[CAPACITY_AT..].copy_from_slice(&(capacity as u64).to_le_bytes());
    name
}

/// Returns true if the file is this very kept memory.
fn goes_on(file: &File, name: &[u8; NAME_BYTES], bytes: usize) -> bool {
    let mut header = [0; END_AT + 8];
    let read = file.read_exact_at(&mut header, 0);
    let counter = |at: usize| {
        u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes are eight bytes"))
    };
    let (front, end) = (counter(FRONT_AT), counter(END_AT));
    let capacity = (bytes - HEADER_BYTES) as u64;
    read.is_ok()
        && header.starts_with(name)
        && file.metadata().is_ok_and(|is| is.len() == bytes as u64)
        && end.checked_sub(front).is_some_and(|used| used <= capacity)
}

/// Makes the file an empty kept memory. One that is cut off in this is none.
fn begin(file: &File, name: &[u8; NAME_BYTES], bytes: usize) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(bytes as u64)?;
    file.write_all_at(name, 0)
}
