//! An allocator that counts, for the programs of this crate and its tests: what a thread allocates,
//! and how much of it is live.
//!
//! The counters belong to the thread that allocates, for the engine has one thread. They cost about
//! a nanosecond a call.
#![allow(unsafe_code, reason = "a global allocator can't be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts and passes on to the system's allocator. To be made the `#[global_allocator]` of a
/// program.
#[derive(Debug)]
pub struct Counting;

/// Allocations of a thread since its start.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Allocations {
    /// Calls that gave memory, growing in place included.
    pub count: u64,
    /// Bytes of these allocations.
    pub bytes: u64,
    /// Bytes allocated and not freed. Memory that another thread frees counts for that thread.
    pub live_bytes: i64,
}

impl Allocations {
    /// The counters of this thread. All zero if [`Counting`] is not the allocator of the program.
    pub fn now() -> Allocations {
        COUNTERS.with(Cell::get)
    }

    /// Difference to `earlier`.
    #[must_use]
    pub fn since(self, earlier: Allocations) -> Allocations {
        Allocations {
            count: self.count - earlier.count,
            bytes: self.bytes - earlier.bytes,
            live_bytes: self.live_bytes - earlier.live_bytes,
        }
    }
}

thread_local! {
    static COUNTERS: Cell<Allocations> =
        const { Cell::new(Allocations { count: 0, bytes: 0, live_bytes: 0 }) };
}

fn count(allocated: usize, freed: usize) {
    // A thread that ends may have no counters any more, and no reader of them.
    let _ = COUNTERS.try_with(|counters| {
        let mut now = counters.get();
        if allocated > 0 {
            now.count += 1;
            now.bytes += allocated as u64;
        }
        now.live_bytes += allocated as i64 - freed as i64;
        counters.set(now);
    });
}

// SAFETY: every call is passed on, unchanged, to the allocator of the system; counting does not
// allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for both.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the memory came from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: the memory came from `System`, with this layout, and the caller keeps the rest of
        // the contract.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}
