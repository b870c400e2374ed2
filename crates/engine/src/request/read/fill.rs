//! Fills: what a read missed goes to the cache (R3).

use std::rc::Rc;

use ubcache_env::buf::PAGE_BYTES;
use ubcache_env::{Durability, Env, Priority, SectorRange};

use super::fill_queue::{Fill, FillTicket, Fills};
use crate::request::cache_io::place_pieces;
#[cfg(feature = "mutants")]
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Tasks of a volume that write what was missed to the cache, at most.
const FILL_TASKS_MAX: usize = 32;

impl<E: Env> CachedVolume<E> {
    /// Registers a miss that is to be cached. `None`: it is not.
    pub(super) fn register_fill(&self, range: SectorRange) -> Option<FillTicket> {
        let block = u64::from(self.context.geometry.block_sectors);
        // Part of a block can't be cached on its own without wasting the rest of it.
        let whole = range.start.0.is_multiple_of(block) && range.sectors().is_multiple_of(block);
        if !whole {
            return None;
        }
        if !self.has_room_for_copies() {
            self.context.env.mark("too_many_copies");
            return None;
        }
        // It is memory that is limited, and a sector takes a page of it.
        let bytes = range.bytes().next_multiple_of(PAGE_BYTES as u64);
        #[cfg(feature = "mutants")]
        let bytes = self.limited_bytes_of_fill(bytes);
        let Some(memory) = self.fills.memory.try_acquire(bytes) else {
            self.context.env.mark("fill_memory_short");
            return None;
        };
        Some(FillTicket { entry: self.coherence.inflight.enter_fill(range), _memory: memory })
    }

    /// Has R3 done by one of a few tasks: thousands of reads can miss at the same time.
    pub(super) fn start_fills(&self, fills: Fills) {
        let Some(me) = self.me.upgrade() else { return };
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::R3FewFillTasks) {
            return me.fill_in_the_background(fills);
        }
        if self.fills.tasks.get() >= FILL_TASKS_MAX {
            self.context.env.mark("fill_waits_for_its_turn");
            self.fills.waiting.borrow_mut().push_back(fills);
            return;
        }
        self.fills.tasks.set(self.fills.tasks.get() + 1);
        self.context.env.spawn(Priority::Fill, async move {
            let mut next = Some(fills);
            while let Some(fills) = next {
                for fill in fills {
                    me.fill(fill).await;
                }
                next = me.fills.next();
            }
            me.fills.tasks.set(me.fills.tasks.get() - 1);
        });
    }

    /// R3: writes the data to the cache device and keeps it as an unpublished copy, as far as no
    /// write doomed it meanwhile.
    pub(crate) async fn fill(self: &Rc<Self>, fill: Fill) {
        let Fill { range, data, ticket } = fill;
        if self.is_stopping() {
            return;
        }
        let class = self.allocator.buckets_mut().class_of_fill(self.inode(), range);
        let written =
            match self.allocator.try_allocate(class, range.sectors(), self.block_sectors()) {
                None => {
                    self.context.env.mark("fill_without_room");
                    None
                }
                Some(pieces) => {
                    let ok = self.write_pieces(&pieces, data.into(), Durability::Volatile).await;
                    ok.then_some(pieces)
                }
            };
        // One step from here on.
        let doomed = ticket.entry.leave();
        if !doomed.is_empty() {
            self.context.env.mark("fill_doomed_by_write");
        }
        if doomed.covers(range) {
            self.count(|counters| counters.cache_miss_collisions += 1);
            return;
        }
        if !doomed.is_empty() {
            self.context.env.mark("fill_kept_in_part");
        }
        let Some(pieces) = written else { return };
        if self.is_stopping() || self.context.failure().is_some() {
            return;
        }
        for (part, piece) in place_pieces(range, &pieces) {
            for gap in doomed.gaps(part) {
                self.add_copy(
                    gap,
                    piece.pointer.advance(gap.start - part.start),
                    piece.pin.clone(),
                );
            }
        }
    }
}
