//! Sizes of the futures of requests: a task has room for the largest of its waits, and that memory
//! is written and moved for every request.

use ubcache_bench::null::{Rig, Shape};
use ubcache_engine::SetOptions;
use ubcache_env::{IoVec, Sector, SectorRange, StreamId, Volume};
use ubcache_format::CacheMode;

/// Limits in bytes: the present sizes, and 2 %. A change that has to make one larger raises its
/// limit here.
const READ_MAX: usize = 563;
const WRITE_MAX: usize = 4055;
const FLUSH_MAX: usize = 930;
const DISCARD_MAX: usize = 1240;
const WRITE_ZEROES_MAX: usize = 3916;
const PREFETCH_MAX: usize = 1574;

#[test]
fn request_futures_stay_within_their_sizes() {
    let shape = Shape {
        cache_bytes: 320 << 20,
        bucket_sectors: 1024,
        volume_bytes: 1 << 20,
        mode: CacheMode::Writeback,
        options: SetOptions::default(),
    };
    let rig = Rig::new(&shape).expect("a good set");
    let (volume, range) = (&*rig.volume, SectorRange::new(Sector(0), 8));
    let sizes = [
        ("read", size_of_val(&volume.read(StreamId(0), range)), READ_MAX),
        (
            "write",
            size_of_val(&volume.write(StreamId(0), range, IoVec::zeroes(4096), false)),
            WRITE_MAX,
        ),
        ("flush", size_of_val(&volume.flush(StreamId(0))), FLUSH_MAX),
        ("discard", size_of_val(&volume.discard(StreamId(0), range, false)), DISCARD_MAX),
        (
            "write_zeroes",
            size_of_val(&volume.write_zeroes(StreamId(0), range, false, false)),
            WRITE_ZEROES_MAX,
        ),
        ("prefetch", size_of_val(&volume.prefetch(StreamId(0), range)), PREFETCH_MAX),
    ];
    let too_large: Vec<_> = sizes.iter().filter(|(_, bytes, most)| bytes > most).collect();
    assert!(too_large.is_empty(), "future, bytes, at most: {too_large:?}");
}
