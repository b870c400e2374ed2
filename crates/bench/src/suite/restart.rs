//! A start after a kill: of a large set that is full of pieces of 4 KiB.
//!
//! Filling 64 GiB over a real device takes long, so the set is made in a null world. Its metadata
//! goes into sparse files, as they are in the middle of its life, and data are holes. Then `ubcache
//! serve` starts over them.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use ubcache_engine::{SetOptions, Tuning};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use super::servers::{Files, Serve, Server};
use super::{Options, Results, Row};
use crate::nbd::load::{Load, Until, run};
use crate::null::{BUCKET_SECTORS, NullDevice, Rig, Shape};

const GIB: u64 = 1 << 30;

/// Measures starts of two sizes: what does not depend on the size takes as long for both.
pub fn after_kill(options: &Options, results: &mut Results) -> Result<(), String> {
    let sizes = [16 * GIB, 64 * GIB];
    let mut seconds = Vec::new();
    for bytes in sizes {
        let files = write_set(options, bytes)?;
        let began = Instant::now();
        let server = Server::ubcache(options, &files, &Serve::with("restart.nbd", &[]))?;
        let answered = run(&Load { queue_depth: 1, until: Until::Requests(1), ..server.load() })?;
        seconds.push(began.elapsed().as_secs_f64());
        if answered.errors > 0 {
            return Err("the first read failed".to_owned());
        }
        server.kill();
    }
    results.rows.push(Row {
        what: format!(
            "start after a kill, {} GiB full of pieces of 4 KiB, to the first answer: s",
            sizes[1] / GIB
        ),
        goal: "≤ 1 s, whatever the size".to_owned(),
        reached: format!("{:.2}", seconds[1]),
        peer: format!("ubcache with {} GiB {:.2}", sizes[0] / GIB, seconds[0]),
        ratio: format!("{:.2}", seconds[1] / seconds[0]),
        met: Some(seconds[1] <= 1.0),
        command: "`ubcache-bench suite --only restart`".to_owned(),
    });
    Ok(())
}

/// A set that was never stopped, in files. Zeroes stay holes.
fn write_set(options: &Options, bytes: u64) -> Result<Files, String> {
    let rig = full_set(bytes)?;
    let file = |kind: &str| options.directory.join(format!("restart-{kind}.img"));
    let files = Files { cache: file("cache"), backing: file("backing") };
    write_kept(&files.cache, &rig.cache, true)?;
    write_kept(&files.backing, &rig.backing, true)?;
    Ok(files)
}

/// A set in memory that is full of pieces of 4 KiB, in the middle of its life.
pub(super) fn full_set(bytes: u64) -> Result<Rig, String> {
    let tuning = Tuning { extents_in_memory_max: 64 << 20, ..Tuning::default() };
    let shape = Shape {
        cache_bytes: bytes,
        bucket_sectors: BUCKET_SECTORS,
        volume_bytes: bytes + bytes / 8,
        mode: CacheMode::Writethrough,
        options: SetOptions { tuning, ..SetOptions::default() },
    };
    let rig = Rig::new(&shape).map_err(|error| error.to_string())?;
    // Write more than fits: buckets have been used again when the kill comes.
    rig.fill(0, shape.volume_bytes, 4096);
    Ok(rig)
}

/// Writes the metadata of a device to a file of the same size, pages of zeroes only if not
/// `sparse`.
pub(super) fn write_kept(path: &Path, device: &NullDevice, sparse: bool) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = std::fs::File::create(path).map_err(failed)?;
    file.set_len(device.sectors() * SECTOR_BYTES).map_err(failed)?;
    let mut done = Ok(());
    device.each_kept(|at, content| {
        for (index, page) in content.chunks(4096).enumerate() {
            if done.is_ok() && !(sparse && page.iter().all(|&byte| byte == 0)) {
                done = file
                    .seek(SeekFrom::Start(at + index as u64 * 4096))
                    .and_then(|_| file.write_all(page));
            }
        }
    });
    done.and_then(|()| file.sync_all()).map_err(failed)
}
