//! Totals over well-formed extents, as nearly all are: owners of buckets, live sectors of volumes,
//! and shared sectors.
//!
//! Extents are added in any order and by any thread. If one of them needs a finding, there are no
//! totals, and extents are checked one by one (`owners`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ubcache_format::{DataArea, Geometry};

use super::occupancy::Occupancy;
use crate::io::thread_pool::ThreadPool;
use crate::set::{
    Extent, GenerationSnapshot, Owner, STALE_NOTE, Totals, View, VolumeTotals, add_volumes,
};

/// Fewer extents than this are not worth a thread.
const EXTENTS_A_THREAD: usize = 1 << 16;
/// Extents that are added at once.
const EXTENTS_AT_ONCE: usize = 1 << 14;

/// Totals that several threads add to.
pub(crate) struct TotalsBuilder {
    snapshot: Arc<GenerationSnapshot>,
    area: DataArea,
    /// Sectors of the device, if there is memory for a bit for each.
    sectors: Option<u64>,
    threads: Mutex<Vec<ThreadTotals>>,
    /// An extent needs a finding.
    aborted: AtomicBool,
}

/// Totals of one thread.
struct ThreadTotals {
    owners: Vec<Owner>,
    occupancy: Option<Occupancy>,
    overlap: bool,
    /// Staleness of the oldest pointer.
    oldest: u8,
}

impl TotalsBuilder {
    /// Creates totals for up to so many extents. Each thread gets a bit for each sector of the
    /// device, if these take no more memory than a list of places.
    pub fn new(
        geometry: &Geometry,
        snapshot: Arc<GenerationSnapshot>,
        extents: usize,
        threads: usize,
    ) -> Option<TotalsBuilder> {
        let sectors = u64::from(geometry.buckets) * u64::from(geometry.bucket_sectors);
        let words = sectors.div_ceil(64) as usize;
        let fits = words.saturating_mul(threads) <= extents.saturating_mul(2);
        Some(TotalsBuilder {
            snapshot,
            area: geometry.data_area()?,
            sectors: fits.then_some(sectors),
            threads: Mutex::default(),
            aborted: AtomicBool::new(false),
        })
    }

    /// Returns true if shared sectors are detected.
    pub fn detects_shared_sectors(&self) -> bool {
        self.sectors.is_some()
    }

    /// Adds the extents that are passed to an [`ExtentSink`]. Returns the totals of their volumes;
    /// `None` if an extent needs a finding.
    pub fn add(&self, all: impl FnOnce(&mut ExtentSink<'_>)) -> Option<Vec<VolumeTotals>> {
        if self.aborted() {
            return None;
        }
        let mut own = self
            .threads
            .lock()
            .ok()?
            .pop()
            .unwrap_or_else(|| ThreadTotals::new(&self.snapshot, self.sectors));
        let (volumes, last) = (Vec::new(), VolumeTotals::default());
        let mut sink = ExtentSink { builder: self, own: &mut own, volumes, last, fits: true };
        all(&mut sink);
        let volumes = sink.volumes();
        if let Some(occupancy) = &mut own.occupancy {
            own.overlap |= occupancy.apply_pending();
        }
        if volumes.is_none() {
            self.abort();
        }
        self.threads.lock().ok()?.push(own);
        volumes
    }

    /// Stops: an extent needs a finding.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// Returns true if an extent needs a finding.
    pub fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Merges the totals of all threads, when none adds any more. `volumes` are those of the
    /// volumes. `None` if an extent needs a finding.
    pub fn totals(&self, volumes: Vec<VolumeTotals>) -> Option<Totals> {
        if self.aborted() {
            return None;
        }
        let mut threads = std::mem::take(&mut *self.threads.lock().ok()?);
        let mut all =
            threads.pop().unwrap_or_else(|| ThreadTotals::new(&self.snapshot, self.sectors));
        all.overlap |= all.occupancy.as_ref().is_some_and(Occupancy::has_mixed_overlap);
        for own in threads {
            all.overlap |= own.overlap;
            all.oldest = all.oldest.max(own.oldest);
            if let (Some(occupancy), Some(other)) = (all.occupancy.as_mut(), &own.occupancy) {
                all.overlap |= occupancy.merge(other);
            }
            for (owner, other) in all.owners.iter_mut().zip(own.owners) {
                if other != Owner::Free {
                    let _ = owner.assign(other);
                }
            }
        }
        Some(Totals { volumes, owners: all.owners, overlap: all.overlap, oldest: all.oldest })
    }
}

impl ThreadTotals {
    fn new(snapshot: &GenerationSnapshot, sectors: Option<u64>) -> ThreadTotals {
        let occupancy = sectors.map(Occupancy::new);
        ThreadTotals {
            owners: vec![Owner::Free; snapshot.buckets()],
            overlap: occupancy.is_none(),
            occupancy,
            oldest: 0,
        }
    }
}

/// Receiver of extents, one by one.
pub(crate) struct ExtentSink<'a> {
    builder: &'a TotalsBuilder,
    own: &'a mut ThreadTotals,
    /// Totals of the volumes before the last.
    volumes: Vec<VolumeTotals>,
    last: VolumeTotals,
    /// True if no extent needs a finding.
    fits: bool,
}

impl ExtentSink<'_> {
    /// Adds an extent.
    #[inline]
    pub fn add(&mut self, extent: &Extent) {
        let Some(pointer) = extent.pointer() else { return };
        let ExtentSink { builder, own, .. } = self;
        let number = builder.area.bucket(pointer.offset);
        let (Some(generation), Some(owner)) =
            (builder.snapshot.generation(number), own.owners.get_mut(number))
        else {
            self.fits = false;
            return;
        };
        let dirty = extent.is_dirty();
        let stale = builder.snapshot.reach().staleness_of(generation, pointer.generation);
        if stale > 0 {
            own.oldest = own.oldest.max(stale);
            self.fits &= stale <= STALE_NOTE && !dirty;
            return;
        }
        let sectors = extent.range().sectors();
        if dirty {
            *owner = Owner::Dirty;
        } else if *owner == Owner::Free {
            *owner = Owner::Clean;
        }
        if let Some(occupancy) = &mut own.occupancy {
            own.overlap |= occupancy.occupy(pointer.offset.0, pointer.offset.0 + sectors);
        }
        if extent.inode() != self.last.inode {
            self.volumes.push(self.last);
            self.last = VolumeTotals { inode: extent.inode(), ..VolumeTotals::default() };
        }
        self.last.extents += 1;
        if dirty {
            self.last.dirty_sectors += sectors;
        } else {
            self.last.clean_sectors += sectors;
        }
    }

    fn volumes(mut self) -> Option<Vec<VolumeTotals>> {
        self.volumes.push(self.last);
        self.volumes.retain(|totals| totals.extents > 0);
        self.fits.then_some(self.volumes)
    }
}

/// The totals over the extents of a view.
pub(crate) fn totals_of(view: &View, pool: &ThreadPool) -> Option<Totals> {
    let snapshot = Arc::new(GenerationSnapshot::new(&view.geometry, view.reach, &view.buckets));
    let threads = pool.threads_for(view.extents.len(), EXTENTS_A_THREAD);
    let builder = TotalsBuilder::new(&view.geometry, snapshot, view.extents.len(), threads)?;
    let parts: Vec<&[Extent]> = view.extents.chunks(EXTENTS_AT_ONCE).collect();
    let mut volumes = Vec::new();
    let add = |number: usize| {
        let part = parts.get(number)?;
        builder.add(|sink| part.iter().for_each(|extent| sink.add(extent)))
    };
    pool.map_in_order(threads, parts.len(), add, |_, part| {
        add_volumes(&mut volumes, &part.unwrap_or_default())
    });
    builder.totals(volumes)
}
