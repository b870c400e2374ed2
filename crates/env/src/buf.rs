//! Page-aligned memory for I/O.
//!
//! A [`Buf`] is owned by one holder and can be written; [`Buf::freeze`] turns it into a
//! [`Slice`], which is shared, cheap to clone and cut, and read-only. An [`IoVec`] strings
//! slices together: what a write takes and what a read of a volume gives.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};

use smallvec::SmallVec;
use ubcache_format::SECTOR_BYTES;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A buffer takes whole pages of this size.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// The pages of a [`Buf`] and of the slices that it becomes.
struct Memory {
    pages: Vec<Page>,
    /// The pool that takes the pages back when the last holder drops them.
    home: Weak<Free>,
}

impl Memory {
    /// Its pages, which do not go back to their pool any more.
    fn leave_home(self) -> Vec<Page> {
        if let Some(home) = self.home.upgrade() {
            home.held.set(home.held.get() - self.pages.len());
        }
        self.pages
    }
}

/// Memory for I/O, aligned to 4096 bytes, with one owner.
#[derive(Default)]
pub struct Buf {
    memory: Option<Rc<Memory>>,
    len: usize,
}

/// A pool of memory for I/O: memory that was given back is used again. [`Buf::zeroed`] asks the
/// allocator and clears; for a read, which fills the memory anyway, both are a waste. An allocation
/// may fail.
#[derive(Clone, Default)]
pub struct BufPool(Rc<Free>);

/// Returns true if so many bytes are available. A world that simulates a shortage of memory brings
/// its own.
pub type Supply = Box<dyn Fn(usize) -> bool>;

/// Pages that a pool keeps at most.
const POOL_PAGES_MAX: usize = 512;
/// Buffers up to this size come from and go to those pages.
const POOLED_PAGES_MAX: usize = 32;
/// Limit for the pages of larger buffers. They are kept apart: clearing one costs as much as its
/// I/O.
const LARGE_PAGES_MAX: usize = 4096;

/// Pages of a buffer, and the number of such buffers, that [`BufPool::fill`] takes: as much as a
/// pool keeps.
const FILLED: [(usize, usize); 3] = [
    (1, POOL_PAGES_MAX / 2),
    (POOLED_PAGES_MAX, POOL_PAGES_MAX / 2 / POOLED_PAGES_MAX),
    (256, LARGE_PAGES_MAX / 256),
];

/// Free buffers of a pool, by number of pages.
#[derive(Default)]
struct Free {
    by_pages: RefCell<[Vec<Rc<Memory>>; POOLED_PAGES_MAX]>,
    pages: Cell<usize>,
    large: RefCell<Vec<Rc<Memory>>>,
    large_pages: Cell<usize>,
    /// Pages of the buffers in use.
    held: Cell<usize>,
    supply: Option<Supply>,
}

impl BufPool {
    /// A pool that asks `supply` before every allocation, also when it has free memory.
    pub fn with_supply(supply: Supply) -> BufPool {
        BufPool(Rc::new(Free { supply: Some(supply), ..Free::default() }))
    }

    /// Memory for `sectors` sectors, as [`BufPool::for_bytes`].
    #[inline]
    pub fn for_sectors(&self, sectors: u64) -> Option<Buf> {
        self.for_bytes((sectors * SECTOR_BYTES) as usize)
    }

    /// Memory for `len` bytes; none if the system has none. It contains zeroes, or the data of an
    /// earlier user.
    #[inline]
    pub fn for_bytes(&self, len: usize) -> Option<Buf> {
        if self.0.supply.as_ref().is_some_and(|supply| !supply(len)) {
            return None;
        }
        let pages = len.div_ceil(PAGE_BYTES);
        if pages == 0 {
            return Some(Buf::default());
        }
        let memory = match self.0.take(pages) {
            Some(memory) => memory,
            None => {
                let pages = Page::new_vec_zeroed(pages).ok()?;
                Rc::new(Memory { pages, home: Rc::downgrade(&self.0) })
            }
        };
        self.0.held.set(self.0.held.get() + memory.pages.len());
        Some(Buf { memory: Some(memory), len })
    }

    /// Takes memory from the system for buffers of 4 KiB, 128 KiB and 1 MiB, 18 MiB in all, and
    /// touches it: what clients of this machine write when it is short of memory finds some.
    pub fn fill(&self) {
        let filled = FILLED.map(|(pages, count)| -> Vec<_> {
            (0..count).filter_map(|_| self.for_bytes(pages * PAGE_BYTES)).collect()
        });
        for mut buffer in filled.into_iter().flatten() {
            buffer.as_mut_slice().fill(0);
        }
    }

    /// Bytes of the buffers that came from here and are in use, in whole pages.
    pub fn held_bytes(&self) -> usize {
        self.0.held.get() * PAGE_BYTES
    }
}

impl Free {
    /// Takes a free buffer of `pages` pages, if there is one.
    #[inline]
    fn take(&self, pages: usize) -> Option<Rc<Memory>> {
        if pages <= POOLED_PAGES_MAX {
            let memory = self.by_pages.borrow_mut()[pages - 1].pop()?;
            self.pages.set(self.pages.get() - pages);
            return Some(memory);
        }
        let mut large = self.large.borrow_mut();
        let found = large.iter().rposition(|memory| memory.pages.len() == pages)?;
        self.large_pages.set(self.large_pages.get() - pages);
        Some(large.remove(found))
    }

    fn keep(&self, memory: Rc<Memory>) {
        let pages = memory.pages.len();
        self.held.set(self.held.get() - pages);
        if pages <= POOLED_PAGES_MAX {
            if self.pages.get() + pages <= POOL_PAGES_MAX {
                self.pages.set(self.pages.get() + pages);
                self.by_pages.borrow_mut()[pages - 1].push(memory);
            }
            return;
        }
        if pages > LARGE_PAGES_MAX {
            return;
        }
        let mut large = self.large.borrow_mut();
        // Drop the oldest buffers first: sizes out of use give way to those in use.
        while self.large_pages.get() + pages > LARGE_PAGES_MAX {
            let oldest = large.remove(0);
            self.large_pages.set(self.large_pages.get() - oldest.pages.len());
        }
        self.large_pages.set(self.large_pages.get() + pages);
        large.push(memory);
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufPool({} pages)", self.0.pages.get() + self.0.large_pages.get())
    }
}

/// Gives memory back to its pool, unless another handle holds it.
fn give_back(memory: Option<Rc<Memory>>) {
    let Some(memory) = memory else { return };
    if Rc::strong_count(&memory) > 1 {
        return;
    }
    if let Some(home) = memory.home.upgrade() {
        home.keep(memory);
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        // Mostly it was frozen.
        if self.memory.is_some() {
            give_back(self.memory.take());
        }
    }
}

impl Drop for Slice {
    #[inline]
    fn drop(&mut self) {
        if self.memory.is_some() {
            give_back(self.memory.take());
        }
    }
}

impl Buf {
    /// `len` bytes of zeroes.
    pub fn zeroed(len: usize) -> Buf {
        if len == 0 {
            return Buf::default();
        }
        let pages = len.div_ceil(PAGE_BYTES);
        // The system clears what it gives; to do so again takes as long as reading into it.
        let pages =
            Page::new_vec_zeroed(pages).unwrap_or_else(|_| vec![Page([0; PAGE_BYTES]); pages]);
        Buf { memory: Some(Rc::new(Memory { pages, home: Weak::new() })), len }
    }

    /// Memory for `sectors` sectors, zeroed.
    pub fn for_sectors(sectors: u64) -> Buf {
        Buf::zeroed((sectors * SECTOR_BYTES) as usize)
    }

    /// A copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Buf {
        let mut buf = Buf::zeroed(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        buf
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shortens to `len` bytes; no effect if already shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        bytes_of(self.memory.as_ref(), 0, self.len)
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let Some(memory) = &mut self.memory else { return &mut [] };
        let memory = Rc::get_mut(memory).expect("a buffer that is not frozen has one owner");
        &mut memory.pages.as_mut_slice().as_mut_bytes()[..self.len]
    }

    /// Ends writing: from now on the memory is shared and read-only.
    #[inline]
    pub fn freeze(mut self) -> Slice {
        Slice { memory: self.memory.take(), start: 0, end: self.len }
    }
}

/// The memory of a [`Buf`] for another thread, which reads it; it may become a [`Buf`] again on any
/// thread.
pub struct Parcel {
    pages: Vec<Page>,
    len: usize,
}

impl Buf {
    /// Turns the buffer into one for another thread; the memory is the same.
    pub fn into_parcel(mut self) -> Parcel {
        let memory = self.memory.take().and_then(Rc::into_inner);
        Parcel { pages: memory.map(Memory::leave_home).unwrap_or_default(), len: self.len }
    }
}

impl IoVec {
    /// Turns the data into memory for another thread: the same memory where nobody else holds it,
    /// else a copy.
    pub fn into_parcels(self) -> Vec<Parcel> {
        let parcel = |mut slice: Slice| {
            let whole = slice.start == 0;
            let memory = slice.memory.take();
            match memory.map(Rc::try_unwrap) {
                None => Parcel { pages: Vec::new(), len: 0 },
                Some(Ok(memory)) if whole => Parcel { pages: memory.leave_home(), len: slice.end },
                Some(memory) => {
                    slice.memory = Some(memory.map_or_else(|shared| shared, Rc::new));
                    Buf::from_bytes(slice.as_slice()).into_parcel()
                }
            }
        };
        self.parts.into_iter().map(parcel).collect()
    }

    /// Data from another thread.
    pub fn from_parcels(parcels: Vec<Parcel>) -> IoVec {
        let mut data = IoVec::with_capacity(parcels.len());
        parcels.into_iter().for_each(|parcel| data.push(parcel.into_buf().freeze()));
        data
    }
}

impl Parcel {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.pages.as_slice().as_bytes().get(..self.len).unwrap_or_default()
    }

    /// Turns the memory into a buffer. Memory of a pool does not go back to it.
    pub fn into_buf(self) -> Buf {
        let Parcel { pages, len } = self;
        let memory = (!pages.is_empty()).then(|| Rc::new(Memory { pages, home: Weak::new() }));
        Buf { memory, len }
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parcel({} bytes)", self.len)
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

fn bytes_of(memory: Option<&Rc<Memory>>, start: usize, end: usize) -> &[u8] {
    memory.map_or(&[], |memory| &memory.pages.as_slice().as_bytes()[start..end])
}

/// A shared, read-only part of a [`Buf`].
#[derive(Clone)]
pub struct Slice {
    memory: Option<Rc<Memory>>,
    start: usize,
    end: usize,
}

impl Slice {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns true if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        bytes_of(self.memory.as_ref(), self.start, self.end)
    }

    /// The part from byte `from` to byte `to` of this slice.
    ///
    /// # Panics
    /// If the part is not within the slice.
    pub fn cut(&self, from: usize, to: usize) -> Slice {
        assert!(
            from <= to && to <= self.len(),
            "cut {from}..{to} of a slice of {} bytes",
            self.len()
        );
        Slice { memory: self.memory.clone(), start: self.start + from, end: self.start + to }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len())
    }
}

/// A string of slices.
#[derive(Debug, Default)]
pub struct IoVec {
    parts: SmallVec<[Slice; 2]>,
    len: usize,
}

impl IoVec {
    /// An empty string.
    pub fn new() -> IoVec {
        IoVec::default()
    }

    /// An empty string with room for `parts` slices.
    pub fn with_capacity(parts: usize) -> IoVec {
        IoVec { parts: SmallVec::with_capacity(parts), len: 0 }
    }

    /// `len` bytes of zeroes.
    pub fn zeroes(len: usize) -> IoVec {
        const CHUNK: usize = 64 << 10;
        let mut vec = IoVec::new();
        let chunk = Buf::zeroed(len.min(CHUNK)).freeze();
        while vec.len < len {
            vec.push(chunk.cut(0, (len - vec.len).min(CHUNK)));
        }
        vec
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Length in whole sectors.
    pub fn sectors(&self) -> u64 {
        self.len as u64 / SECTOR_BYTES
    }

    /// Appends a slice.
    #[inline]
    pub fn push(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.parts.push(slice);
        }
    }

    /// Appends another string.
    pub fn append(&mut self, other: IoVec) {
        self.len += other.len;
        self.parts.extend(other.parts);
    }

    /// The slices in order, none of them empty.
    pub fn parts(&self) -> &[Slice] {
        &self.parts
    }

    /// The bytes from `from` to `to`.
    ///
    /// # Panics
    /// If they are not within the string.
    pub fn cut(&self, from: usize, to: usize) -> IoVec {
        assert!(from <= to && to <= self.len, "cut {from}..{to} of a string of {} bytes", self.len);
        let mut vec = IoVec::new();
        let mut at = 0;
        for part in &self.parts {
            let (low, high) = (from.max(at), to.min(at + part.len()));
            if low < high {
                vec.push(part.cut(low - at, high - at));
            }
            at += part.len();
        }
        vec
    }

    /// The part of `sectors` sectors from sector `from` of the string.
    pub fn cut_sectors(&self, from: u64, sectors: u64) -> IoVec {
        self.cut((from * SECTOR_BYTES) as usize, ((from + sectors) * SECTOR_BYTES) as usize)
    }

    /// All bytes in one new buffer.
    pub fn to_buf(&self) -> Buf {
        let mut buf = Buf::zeroed(self.len);
        self.copy_to(buf.as_mut_slice());
        buf
    }

    /// Copies all bytes.
    ///
    /// # Panics
    /// If `into` has another length.
    pub fn copy_to(&self, into: &mut [u8]) {
        let mut at = 0;
        for part in &self.parts {
            into[at..at + part.len()].copy_from_slice(part.as_slice());
            at += part.len();
        }
        assert_eq!(at, into.len(), "the target has the length of the string");
    }
}

impl Clone for IoVec {
    fn clone(&self) -> IoVec {
        match self.parts.as_slice() {
            // The common case: nearly all writes have one part.
            [one] => one.clone().into(),
            _ => IoVec { parts: self.parts.clone(), len: self.len },
        }
    }
}

impl From<Slice> for IoVec {
    #[inline]
    fn from(slice: Slice) -> IoVec {
        let len = slice.len();
        // Every request has one of these: it is put in its place at once.
        let empty = Slice { memory: None, start: 0, end: 0 };
        IoVec { parts: SmallVec::from_buf_and_len([slice, empty], usize::from(len > 0)), len }
    }
}

impl From<Buf> for IoVec {
    fn from(buf: Buf) -> IoVec {
        buf.freeze().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_across_parts_has_the_same_bytes() {
        let mut vec = IoVec::new();
        vec.push(Buf::from_bytes(b"hello ").freeze());
        vec.push(Buf::from_bytes(b"wide world").freeze().cut(5, 10));
        assert_eq!(vec.to_buf().as_slice(), b"hello world");
        assert_eq!(vec.cut(4, 8).to_buf().as_slice(), b"o wo");
        assert!(vec.cut(3, 3).is_empty());
    }

    #[test]
    fn filled_pool_needs_no_more_memory() {
        let pool = BufPool::default();
        let free = |pool: &BufPool| pool.0.pages.get() + pool.0.large_pages.get();
        pool.fill();
        assert_eq!((free(&pool), pool.held_bytes()), (POOL_PAGES_MAX + LARGE_PAGES_MAX, 0));
        let (small, large) = (pool.for_sectors(8), pool.for_sectors(2048));
        assert!(small.is_some() && large.is_some());
        assert_eq!(free(&pool), POOL_PAGES_MAX + LARGE_PAGES_MAX - 257);
    }

    #[test]
    fn pool_reuses_only_released_memory() {
        let pool = BufPool::default();
        let memory = |sectors| pool.for_sectors(sectors).expect("there is some");
        let mut first = memory(8);
        first.as_mut_slice().fill(7);
        let address = first.as_slice().as_ptr();
        let slice = first.freeze();
        let other = slice.cut(10, 20);
        drop(slice);
        assert_ne!(memory(8).as_slice().as_ptr(), address, "it is held");
        assert_eq!(other.as_slice(), [7; 10]);
        drop(other);
        assert_eq!(memory(5).as_slice().as_ptr(), address);
        let large = memory(1000);
        let address = large.as_slice().as_ptr();
        drop(large);
        assert_eq!(memory(1000).as_slice().as_ptr(), address);
        let survivor = memory(8);
        drop(pool);
        assert_eq!(survivor.as_slice().len(), 4096);
    }

    #[test]
    fn pool_keeps_a_bounded_amount() {
        let pool = BufPool::default();
        let sectors = |pages: usize| (pages * PAGE_BYTES) as u64 / SECTOR_BYTES;
        let hold = |pages: usize, count: usize| -> Vec<Buf> {
            (0..count).map(|_| pool.for_sectors(sectors(pages)).expect("there is some")).collect()
        };
        drop(hold(1, 2 * POOL_PAGES_MAX));
        assert_eq!(pool.0.pages.get(), POOL_PAGES_MAX);
        let mixed = (hold(256, 10), hold(1000, 5), hold(LARGE_PAGES_MAX + 1, 1));
        drop(mixed);
        let kept: usize = pool.0.large.borrow().iter().map(|memory| memory.pages.len()).sum();
        assert_eq!(kept, pool.0.large_pages.get());
        assert!((LARGE_PAGES_MAX - 1000..=LARGE_PAGES_MAX).contains(&kept), "{kept}");
    }

    #[test]
    fn held_memory_is_counted_in_whole_pages() {
        let pool = BufPool::default();
        let memory = |sectors| pool.for_sectors(sectors).expect("there is some");
        let (one, large) = (memory(1), memory(1000).freeze());
        let part = large.cut(0, 10);
        drop(large);
        assert_eq!(pool.held_bytes(), 126 * PAGE_BYTES, "a part holds all of it");
        drop(part);
        assert_eq!(pool.held_bytes(), PAGE_BYTES);
        drop(one.into_parcel());
        assert_eq!(pool.held_bytes(), 0);
        let again = memory(8);
        assert_eq!(pool.held_bytes(), PAGE_BYTES);
        drop(again);
        assert_eq!(pool.held_bytes(), 0);
    }

    #[test]
    fn pool_refuses_what_its_supply_refuses() {
        let pool = BufPool::with_supply(Box::new(|bytes| bytes <= 8192));
        assert_eq!(pool.for_sectors(16).map(|buf| buf.len()), Some(8192));
        assert!(pool.for_sectors(17).is_none());
        assert!(
            BufPool::default().for_bytes(usize::MAX / 2).is_none(),
            "more than any machine has"
        );
    }

    #[test]
    fn memory_goes_to_another_thread_and_back() {
        for len in [0, 512, 5000] {
            let mut buf = Buf::zeroed(len);
            buf.as_mut_slice().fill(7);
            let address = buf.as_slice().as_ptr().addr();
            let parcel = buf.into_parcel();
            let parcel = std::thread::scope(|scope| {
                let there = scope.spawn(move || {
                    assert!(parcel.as_slice().iter().all(|byte| *byte == 7));
                    parcel
                });
                there.join().expect("it has all of the bytes")
            });
            let mut buf = parcel.into_buf();
            buf.as_mut_slice().fill(8);
            assert_eq!(buf.as_slice(), vec![8; len]);
            assert!(len == 0 || buf.as_slice().as_ptr().addr() == address, "it was copied");
        }
    }

    #[test]
    fn memory_is_page_aligned() {
        for len in [1, 512, 4096, 70_000] {
            let buf = Buf::zeroed(len);
            assert_eq!(buf.as_slice().as_ptr().addr() % PAGE_BYTES, 0);
            assert_eq!(buf.as_slice().len(), len);
        }
    }
}
