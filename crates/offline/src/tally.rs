//! Sums over extents of which there is nothing to say, as it is with nearly all: who owns which bucket, how much is live of
//! which volume, and whether two of them share a sector.
//!
//! Extents are added in any order and by any thread. As soon as there is anything to say of one, there are no sums, and
//! the extents are looked at one by one ([`account`](mod@crate::account)).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ubcache_format::{DataArea, Geometry};

use crate::account::STALE_NOTE;
use crate::crew::Crew;
use crate::leaf::Moment;
use crate::taken::Taken;
use crate::view::{Bucket, Extent, Owner, View, VolumeSums};

/// Fewer extents than this are not worth a thread.
const EXTENTS_A_THREAD: usize = 1 << 16;
/// Extents that are added at once.
const EXTENTS_AT_ONCE: usize = 1 << 14;

/// What all extents come to.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// What is live of each volume, in order.
    pub volumes: Vec<VolumeSums>,
    /// Who owns each bucket, as far as it is data.
    owners: Vec<Owner>,
    /// Whether live extents may have sectors in common.
    pub twice: bool,
    /// How far the oldest pointer is behind its bucket.
    pub oldest: u8,
}

impl Sums {
    /// Gives buckets to those who have data in them. Nothing is changed if one of these has somebody else already.
    pub fn lay_over(&self, buckets: &mut [Bucket]) -> bool {
        let fits = |(bucket, owner): (&Bucket, &Owner)| {
            let mut former = bucket.owner;
            *owner == Owner::Free || former.give_way(*owner).is_none()
        };
        if !buckets.iter().zip(&self.owners).all(fits) {
            return false;
        }
        for (bucket, owner) in buckets.iter_mut().zip(&self.owners) {
            if *owner != Owner::Free {
                bucket.owner = *owner;
            }
        }
        true
    }
}

/// Adds what is live of volumes to that of those before them.
pub(crate) fn add_volumes(volumes: &mut Vec<VolumeSums>, later: &[VolumeSums]) {
    for sums in later {
        match volumes.last_mut() {
            Some(last) if last.inode == sums.inode => {
                last.extents += sums.extents;
                last.clean_sectors += sums.clean_sectors;
                last.dirty_sectors += sums.dirty_sectors;
            }
            _ => volumes.push(*sums),
        }
    }
}

/// Where threads add up.
pub(crate) struct Adding {
    moment: Arc<Moment>,
    area: DataArea,
    /// Of the device, if there is memory for a bit for each.
    sectors: Option<u64>,
    tallies: Mutex<Vec<Tally>>,
    /// There is something to say of an extent.
    given_up: AtomicBool,
}

/// What one thread has added up.
struct Tally {
    owners: Vec<Owner>,
    taken: Option<Taken>,
    twice: bool,
    /// How far the oldest pointer is behind its bucket.
    oldest: u8,
}

impl Adding {
    /// A place to add up to so many extents; each thread gets a bit for each sector of the device, if that is no more than
    /// the list of places would take.
    pub fn new(geometry: &Geometry, moment: Arc<Moment>, extents: usize, threads: usize) -> Option<Adding> {
        let sectors = u64::from(geometry.buckets) * u64::from(geometry.bucket_sectors);
        let words = sectors.div_ceil(64) as usize;
        let fits = words.saturating_mul(threads) <= extents.saturating_mul(2);
        Some(Adding {
            moment,
            area: geometry.data_area()?,
            sectors: fits.then_some(sectors),
            tallies: Mutex::default(),
            given_up: AtomicBool::new(false),
        })
    }

    /// Whether it is told if extents share sectors.
    pub fn tells_shared_sectors(&self) -> bool {
        self.sectors.is_some()
    }

    /// Adds the extents that are given to a [`Sink`], and says what is live of their volumes; nothing if there is anything
    /// to say of one.
    pub fn add(&self, all: impl FnOnce(&mut Sink<'_>)) -> Option<Vec<VolumeSums>> {
        if self.given_up() {
            return None;
        }
        let mut tally =
            self.tallies.lock().ok()?.pop().unwrap_or_else(|| Tally::new(&self.moment, self.sectors));
        let (volumes, last) = (Vec::new(), VolumeSums::default());
        let mut sink = Sink { adding: self, tally: &mut tally, volumes, last, fits: true };
        all(&mut sink);
        let volumes = sink.volumes();
        if let Some(taken) = &mut tally.taken {
            tally.twice |= taken.settle();
        }
        if volumes.is_none() {
            self.give_up();
        }
        self.tallies.lock().ok()?.push(tally);
        volumes
    }

    /// There is something to say.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether there is something to say.
    pub fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// What all have added up, with what is live of volumes; nothing if there is something to say. Nobody adds any more.
    pub fn sums(&self, volumes: Vec<VolumeSums>) -> Option<Sums> {
        if self.given_up() {
            return None;
        }
        let mut tallies = std::mem::take(&mut *self.tallies.lock().ok()?);
        let mut all = tallies.pop().unwrap_or_else(|| Tally::new(&self.moment, self.sectors));
        all.twice |= all.taken.as_ref().is_some_and(Taken::is_in_both);
        for tally in tallies {
            all.twice |= tally.twice;
            all.oldest = all.oldest.max(tally.oldest);
            if let (Some(taken), Some(other)) = (all.taken.as_mut(), &tally.taken) {
                all.twice |= taken.add(other);
            }
            for (owner, other) in all.owners.iter_mut().zip(tally.owners) {
                if other != Owner::Free {
                    let _ = owner.give_way(other);
                }
            }
        }
        Some(Sums { volumes, owners: all.owners, twice: all.twice, oldest: all.oldest })
    }
}

impl Tally {
    fn new(moment: &Moment, sectors: Option<u64>) -> Tally {
        let taken = sectors.map(Taken::new);
        Tally { owners: vec![Owner::Free; moment.buckets()], twice: taken.is_none(), taken, oldest: 0 }
    }
}

/// Where extents are added, one by one.
pub(crate) struct Sink<'a> {
    adding: &'a Adding,
    tally: &'a mut Tally,
    /// What is live of the volumes before the last.
    volumes: Vec<VolumeSums>,
    last: VolumeSums,
    /// Whether there is nothing to say.
    fits: bool,
}

impl Sink<'_> {
    /// Adds an extent.
    #[inline]
    pub fn take(&mut self, extent: &Extent) {
        let Some(pointer) = extent.pointer() else { return };
        let Sink { adding, tally, .. } = self;
        let number = adding.area.bucket(pointer.offset);
        let (Some(generation), Some(owner)) =
            (adding.moment.generation(number), tally.owners.get_mut(number))
        else {
            self.fits = false;
            return;
        };
        let dirty = extent.is_dirty();
        let stale = adding.moment.reach().staleness_of(generation, pointer.generation);
        if stale > 0 {
            tally.oldest = tally.oldest.max(stale);
            self.fits &= stale <= STALE_NOTE && !dirty;
            return;
        }
        let sectors = extent.range().sectors();
        if dirty {
            *owner = Owner::Dirty;
        } else if *owner == Owner::Free {
            *owner = Owner::Clean;
        }
        if let Some(taken) = &mut tally.taken {
            tally.twice |= taken.take(pointer.offset.0, pointer.offset.0 + sectors);
        }
        if extent.inode() != self.last.inode {
            self.volumes.push(self.last);
            self.last = VolumeSums { inode: extent.inode(), ..VolumeSums::default() };
        }
        self.last.extents += 1;
        if dirty {
            self.last.dirty_sectors += sectors;
        } else {
            self.last.clean_sectors += sectors;
        }
    }

    fn volumes(mut self) -> Option<Vec<VolumeSums>> {
        self.volumes.push(self.last);
        self.volumes.retain(|sums| sums.extents > 0);
        self.fits.then_some(self.volumes)
    }
}

/// The sums over the extents of a view.
pub(crate) fn sums_of(view: &View, crew: &Crew) -> Option<Sums> {
    let moment = Arc::new(Moment::new(&view.geometry, view.reach, &view.buckets));
    let threads = crew.worth(view.extents.len(), EXTENTS_A_THREAD);
    let adding = Adding::new(&view.geometry, moment, view.extents.len(), threads)?;
    let parts: Vec<&[Extent]> = view.extents.chunks(EXTENTS_AT_ONCE).collect();
    let mut volumes = Vec::new();
    let add = |number: usize| {
        let part = parts.get(number)?;
        adding.add(|sink| part.iter().for_each(|extent| sink.take(extent)))
    };
    crew.share(threads, parts.len(), add, |_, part| add_volumes(&mut volumes, &part.unwrap_or_default()));
    adding.sums(volumes)
}
