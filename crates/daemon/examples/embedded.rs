//! A set in a program of your own, without a daemon and without NBD: opens a cache and a backing
//! device, writes, reads, stops.
//!
//! ```text
//! ubcache make --size 1G -C cache.img -B disk.img
//! cargo run -p ubcache-daemon --example embedded -- cache.img disk.img
//! ```

use std::error::Error;
use std::path::Path;

use ubcache_engine::{AttachOptions, CacheSet, SetOptions};
use ubcache_env::{Buf, Sector, SectorRange, StreamId, Volume};
use ubcache_host::{Host, HostEnv, HostFile, IoBackend, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [cache, disk] = &paths[..] else { return Err("usage: embedded CACHE DISK".into()) };
    let hits = run(Path::new(cache), Path::new(disk))?;
    println!("{hits} reads were answered by the cache");
    Ok(())
}

/// Serves itself from the set; returns the number of hits.
pub fn run(cache: &Path, disk: &Path) -> Result<u64, Box<dyn Error>> {
    // One thread for the set and everything around it: io_uring, or epoll and threads.
    let host = Host::new(IoBackend::Auto)?;
    host.block_on(use_set(host.env(), cache, disk))
}

async fn use_set(env: HostEnv, cache: &Path, disk: &Path) -> Result<u64, Box<dyn Error>> {
    let options = OpenOptions { write: true, exclusive: true, ..OpenOptions::default() };
    let cache = HostFile::open_aside(&env, cache, options).await?;
    let disk = HostFile::open_aside(&env, disk, options).await?;

    let set = CacheSet::open(env, cache.into(), SetOptions::default()).await?;
    let volume = set.attach(disk.into(), AttachOptions::default()).await?;
    volume.set_attribute("cache_mode", "writeback")?;

    // A stream stands for a client: it gets an error once if a flush loses what it wrote.
    let stream = StreamId(1);
    let first = SectorRange::new(Sector(0), 8);
    volume.write(stream, first, Buf::from_bytes(&[7; 4096]).into(), false).await?;
    volume.flush(stream).await?; // what is written is durable from here on
    let content = volume.read(stream, first).await?;
    assert!(content.to_buf().as_slice().iter().all(|byte| *byte == 7));
    volume.stream_ended(stream, ubcache_env::StreamEnd::Orderly);

    let hits = volume.status().stats.cache_hits;
    drop(volume);
    set.stop().await?; // dirty data stays in the cache, and the next start has it
    Ok(hits)
}
