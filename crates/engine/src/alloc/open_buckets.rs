//! Room for data: pieces of open buckets.
//!
//! Data that will be clean, data that will be dirty and data moved by garbage collection go to
//! different buckets, so that buckets become evictable as a whole; and so do reads and writes
//! with a policy that learns, as what was written is used again by another law than what was read.

use smallvec::SmallVec;
use ubcache_env::Sector;
use ubcache_format::{BucketNr, Geometry, Pointer};

use super::bucket_pins::Pin;
use super::buckets::{Buckets, Purpose};
use crate::replacement::data_class::{CLASSES, Class};

/// Keys name at most 65535 sectors.
const PIECE_SECTORS_MAX: u64 = 32768;

/// A piece of a bucket that its holder may write. The pin keeps the bucket until the piece is
/// named by the index or dropped.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub pointer: Pointer,
    pub sectors: u64,
    pub pin: Pin,
}

/// Room for one request: a single piece, unless a bucket ends in it.
pub(crate) type Pieces = SmallVec<[Piece; 1]>;

#[derive(Copy, Clone, Debug)]
struct OpenBucket {
    bucket: BucketNr,
    next: Sector,
    end: Sector,
    /// Keeps the bucket from being taken for dead before the first extent is in it.
    generation: ubcache_format::Generation,
}

/// The open buckets.
#[derive(Default, Debug)]
pub(crate) struct OpenBuckets {
    open: [Option<OpenBucket>; CLASSES],
}

impl OpenBuckets {
    /// Room for `sectors` sectors in as few pieces as possible, rounded up to whole blocks and cut
    /// at multiples of `unit` sectors; None (and nothing taken) if there is not enough.
    pub fn allocate(
        &mut self,
        buckets: &mut Buckets,
        geometry: &Geometry,
        class: Class,
        sectors: u64,
        unit: u64,
    ) -> Option<Pieces> {
        let block = u64::from(geometry.block_sectors).max(unit);
        // Mostly there is room for it, and for more.
        if let Some(open) = &mut self.open[class as usize]
            && (1..=PIECE_SECTORS_MAX).contains(&sectors)
            && open.next + sectors.next_multiple_of(block) + block <= open.end
        {
            let pointer = Pointer { device: 0, offset: open.next, generation: open.generation };
            open.next += sectors.next_multiple_of(block);
            return Some(Pieces::from_buf([Piece {
                pointer,
                sectors,
                pin: buckets.pins().pin(open.bucket),
            }]));
        }
        let bucket_sectors = u64::from(geometry.bucket_sectors);
        let purpose = if class.is_moved() { Purpose::Move } else { Purpose::Data };
        let room =
            self.open[class as usize].map_or(0, |open| (open.end - open.next) / block * block);
        let more = sectors.saturating_sub(room).div_ceil(bucket_sectors) as usize;
        if more > 0 && !buckets.can_take(purpose, more) {
            return None;
        }
        let mut pieces = Pieces::new();
        let mut left = sectors;
        while left > 0 {
            // The rest of a bucket may be less than a block of another volume.
            let open = self.open[class as usize].filter(|open| open.next + block <= open.end);
            let open = match open {
                Some(open) => open,
                None => {
                    if let Some(full) = self.open[class as usize].take() {
                        buckets.close(full.bucket);
                    }
                    let bucket =
                        buckets.take_for_data(purpose, class as usize).expect("checked above");
                    let start = geometry.bucket_start(bucket);
                    OpenBucket {
                        bucket,
                        next: start,
                        end: Sector(start.0 + bucket_sectors),
                        generation: buckets.generation(bucket),
                    }
                }
            };
            let take = left.min((open.end - open.next) / block * block).min(PIECE_SECTORS_MAX);
            let pointer = Pointer { device: 0, offset: open.next, generation: open.generation };
            pieces.push(Piece { pointer, sectors: take, pin: buckets.pins().pin(open.bucket) });
            left -= take;
            let next = open.next + take.div_ceil(block) * block;
            if next + block <= open.end {
                self.open[class as usize] = Some(OpenBucket { next, ..open });
            } else {
                self.open[class as usize] = None;
                // Pinned by the piece, so it is not taken for dead yet.
                buckets.close(open.bucket);
            }
        }
        Some(pieces)
    }

    /// No more data goes into this bucket.
    pub fn leave(&mut self, buckets: &mut Buckets, bucket: BucketNr) {
        for open in
            self.open.iter_mut().filter(|open| open.is_some_and(|open| open.bucket == bucket))
        {
            *open = None;
            buckets.close(bucket);
        }
    }

    /// No more data goes into buckets beyond the end (A12).
    pub fn leave_beyond(&mut self, buckets: &mut Buckets) {
        let beyond = self.open.iter().flatten().map(|open| open.bucket);
        let beyond: Vec<BucketNr> = beyond.filter(|&bucket| buckets.is_beyond(bucket)).collect();
        beyond.into_iter().for_each(|bucket| self.leave(buckets, bucket));
    }

    /// Closes every open bucket: the set stops, or space is short.
    pub fn close_all(&mut self, buckets: &mut Buckets) {
        for open in self.open.iter_mut().filter_map(Option::take) {
            buckets.close(open.bucket);
        }
    }
}
