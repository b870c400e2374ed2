//! A set under the engine: it is started, its volume is attached and read, and it is stopped, in a
//! simulated world.

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, EngineError, SetOptions, Tuning};
use ubcache_env::{Env, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

use crate::device::Image;
use crate::sets::Base;

/// Sectors of a read.
const READ_SECTORS: u64 = 64;

/// Options for serving a set.
#[derive(Copy, Clone, Debug, Default)]
pub struct How {
    /// Serve before the buckets are counted.
    pub lazy: bool,
    /// Collect garbage before the stop.
    pub collect: bool,
    /// Keep the clean data of a set that the driver ran last.
    pub keep_clean: bool,
}

/// Result of serving a set.
pub struct Served {
    /// Error of the engine that ended it early.
    pub refused: Option<String>,
    /// Content of the volume; zeroes where it could not be read.
    pub content: Vec<u8>,
    /// Volume sectors that could not be read.
    pub unread: Vec<SectorRange>,
    /// The named points of the engine that were reached.
    pub marks: Vec<&'static str>,
    /// The cache device afterwards.
    pub cache: Image,
    /// The backing device afterwards.
    pub backing: Image,
}

/// Serves a set with this cache device.
///
/// # Panics
/// Panics if the engine does, or if it never ends.
pub fn serve(base: &Base, cache: &Image, how: How) -> Served {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk = |name: &str, image: &Image| {
        let sectors = image.len() as u64 / 512;
        let disk = SimDisk::new(
            &world,
            DiskConfig { block_bytes: base.block, ..DiskConfig::new(name, sectors) },
        );
        disk.poke(Sector(0), &image.get(0..image.len()));
        for sector in 0..sectors {
            if image.is_bad(sector..sector + 1) {
                disk.make_bad(SectorRange::new(Sector(sector), 1));
            }
        }
        disk
    };
    let (cache, backing) = (disk("cache", cache), disk("backing", &base.backing));
    let (content, unread) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    let inside =
        (world.new_instance(), cache.clone(), backing.clone(), content.clone(), unread.clone());
    let ended = world.run(async move {
        let (env, cache, backing, content, unread) = inside;
        begin(env, cache, backing, how, &content, &unread)
            .await
            .err()
            .map(|error| error.to_string())
    });
    let image =
        |disk: &SimDisk| Image::new(&disk.peek(SectorRange::new(Sector(0), disk.config().sectors)));
    Served {
        refused: ended.unwrap_or_else(|stuck| panic!("{stuck:?}")),
        content: content.take(),
        unread: unread.take(),
        marks: world.marks().keys().copied().collect(),
        cache: image(&cache),
        backing: image(&backing),
    }
}

async fn begin(
    env: SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    how: How,
    content: &RefCell<Vec<u8>>,
    unread: &RefCell<Vec<SectorRange>>,
) -> Result<(), EngineError> {
    let tuning = Tuning { lazy_start: how.lazy, ..Tuning::default() };
    let options = SetOptions { tuning, keep_clean: how.keep_clean, ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache, options).await?;
    let volume = set.attach(backing, AttachOptions::default()).await?;
    // Keep dirty data in the cache.
    let _ = volume.set_attribute("writeback_running", "0");
    let sectors = volume.info().sectors;
    let mut at = 0;
    while at < sectors {
        let range = SectorRange::new(Sector(at), READ_SECTORS.min(sectors - at));
        match volume.read(StreamId(1), range).await {
            Ok(data) => content.borrow_mut().extend_from_slice(data.to_buf().as_slice()),
            Err(_) => {
                content.borrow_mut().extend(vec![0; range.bytes() as usize]);
                unread.borrow_mut().push(range);
            }
        }
        at = range.end.0;
    }
    env.sleep(Nanos::from_secs(1)).await;
    if how.collect {
        set.trigger_gc().await?;
    }
    set.stop().await
}
