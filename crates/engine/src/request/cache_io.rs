//! Data to its places on the cache device.

use ubcache_env::local::join_all;
use ubcache_env::{Durability, Env, IoResult, IoVec, Nanos, SectorRange};

use crate::alloc::open_buckets::Piece;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// Writes data to pieces of buckets; the last block is padded with zeroes.
    pub(crate) async fn write_pieces(
        &self,
        pieces: &[Piece],
        data: IoVec,
        durability: Durability,
    ) -> bool {
        let started = self.context.env.now();
        let ok = match pieces {
            [piece] => {
                self.piece_is_written(piece, &self.write_piece(piece, data, durability).await)
            }
            _ => {
                let mut at = 0;
                let writes = pieces.iter().map(|piece| {
                    let part = data.cut_sectors(at, piece.sectors);
                    at += piece.sectors;
                    self.write_piece(piece, part, durability)
                });
                let results = join_all(writes).await;
                let results = pieces.iter().zip(&results);
                results.filter(|(piece, result)| !self.piece_is_written(piece, result)).count() == 0
            }
        };
        self.note_cache_latency(started, true);
        ok
    }

    fn write_piece(
        &self,
        piece: &Piece,
        mut data: IoVec,
        durability: Durability,
    ) -> impl Future<Output = IoResult> {
        let block = self.context.geometry.block_bytes() as usize;
        let rest = data.len().next_multiple_of(block) - data.len();
        if rest > 0 {
            data.append(IoVec::zeroes(rest));
        }
        self.context.cache.write(piece.pointer.offset, data, durability)
    }

    fn piece_is_written(&self, piece: &Piece, result: &IoResult) -> bool {
        if let Err(error) = result {
            self.allocator.note_data_error(piece.pointer, error);
        }
        result.is_ok()
    }

    /// Tells the detection of congestion how long the cache device took for a request that has
    /// ended in this step.
    pub(crate) fn note_cache_latency(&self, started: Nanos, write: bool) {
        let threshold = {
            let settings = self.context.settings();
            if write {
                settings.congested_write_threshold_us
            } else {
                settings.congested_read_threshold_us
            }
        };
        if threshold > 0 {
            let (ended, _) = self.context.cache.latest();
            self.bypass.cache_io_ended(ended, ended.since(started), threshold);
        }
    }
}

/// Assigns to each piece its part of the range.
pub(crate) fn place_pieces(
    range: SectorRange,
    pieces: &[Piece],
) -> impl Iterator<Item = (SectorRange, &Piece)> {
    let mut at = range.start;
    pieces.iter().map(move |piece| {
        let part = SectorRange::new(at, piece.sectors);
        at = part.end;
        (part, piece)
    })
}
