//! The power fails at every write of `ubcache make --adopt`: to the cache device, to the header
//! file and its directory, to the copy of the header on the cache device. Then the same command is
//! run, and finishes: one header, the same on the cache device, and a disk without a change.
//!
//! The writes are those of the functions that the command calls, but for the header file. A file
//! system is modelled by three places: the names of a directory in one sector, and the content of
//! two files. What is not synced may be lost, or be there before what was written earlier.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

#[path = "../../offline/tests/support/power.rs"]
mod power;
mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use power::{Numbers, Power, PowerDevice};
use support::adopted::Adopted;
use support::{must, names_in, pseudo_random, scratch, sparse, text};
use ubcache_daemon::open::header::first_record_of;
use ubcache_daemon::open::target::{Access, Target};
use ubcache_env::joined::place_for_copy;
use ubcache_env::{Buf, Device, Durability, Sector};
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, HEADER_BYTES, HeaderRecord, RECORD_BYTES, Replacement,
    Superblock, Uuid, header_copy_places,
};
use ubcache_offline::make_device;

const BUCKET: u64 = 64 << 10;
const BUCKETS: u32 = 640;
/// Bytes of the cache device that are written before it is used.
const HEAD: usize = BUCKET as usize;
const DISK: usize = 2 << 20;
/// Number of the file system of the header; the cache is the other device.
const FILES: usize = 1;
/// The sector with the names of the directory: which of the two files is new, which is the header.
const NAMES: Sector = Sector(2 * HEADER_BYTES as u64 / 512);

/// The devices never wait.
fn run<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a device in memory waits"),
    }
}

fn write(device: &PowerDevice, at: Sector, bytes: &[u8]) {
    run(device.write(at, Buf::from_bytes(bytes).into(), Durability::Volatile)).expect("no faults");
}

fn flush(device: &PowerDevice) {
    run(device.flush()).expect("no faults");
}

fn names(device: &PowerDevice, new: usize, header: usize) {
    let mut sector = [0; 512];
    (sector[0], sector[1]) = (new as u8, header as u8);
    write(device, NAMES, &sector);
}

/// The two files, and which of them is new and the header; 0: none.
fn files(image: &[u8]) -> ([&[u8]; 2], usize, usize) {
    let (first, rest) = image.split_at(HEADER_BYTES);
    let names = &image[NAMES.bytes() as usize..];
    ([first, &rest[..HEADER_BYTES]], usize::from(names[0]), usize::from(names[1]))
}

/// Makes the file of the header, as `create_header` and `replace_header` do.
fn make_header(device: &PowerDevice, image: &[u8], content: &[u8]) {
    let (_, _, header) = files(image);
    let new = if header == 1 { 2 } else { 1 };
    names(device, new, header);
    write(device, Sector((new as u64 - 1) * HEADER_BYTES as u64 / 512), content);
    flush(device);
    if header == 0 {
        // A link, so that a header that is there stays; then the other name goes.
        names(device, new, new);
    }
    names(device, 0, new);
    flush(device);
}

fn uuid(number: u8) -> Uuid {
    Uuid([number; 16])
}

/// The writes of the command; `first`: it has not been run before.
fn adopt(power: &Power, disk: &Path, first: bool) {
    let [cache, file] = &power.devices;
    let (this, set) = if first { (1, 2) } else { (3, 4) };
    let sectors = (BUCKET / 512) as u32;
    let of_cache =
        Superblock::new_cache(uuid(this), uuid(set), 8, sectors, BUCKETS, Replacement::Lru, false);
    run(make_device(cache, &of_cache, &[], false, &())).expect("no faults");
    let (mode, label) = (CacheMode::Writethrough, "data");
    // The second run goes on with the UUID of the first one.
    let backing = Superblock::new_backing(uuid(5), uuid(set), 8, DEFAULT_DATA_OFFSET, mode, label);
    let target = Target::open(disk, Access::Look).expect("the disk");
    let mut content = first_record_of(&target, uuid(5)).expect("a record").encode();
    content.resize(2 * RECORD_BYTES, 0);
    content.extend_from_slice(&backing.encode());
    make_header(file, &power.images()[FILES], &content);
    let place = run(place_for_copy(cache, &of_cache, uuid(5))).expect("no faults").expect("room");
    let copy = Buf::from_bytes(&content).into();
    run(cache.write(place, copy, Durability::Fua)).expect("no faults");
}

struct World {
    set: Adopted,
    content: Vec<u8>,
}

impl World {
    fn new(directory: &Path) -> World {
        let mut content = vec![0; DISK];
        pseudo_random(3, &mut content);
        let set = Adopted {
            io: "pool".to_owned(),
            directory: directory.to_owned(),
            cache: directory.join("cache.img"),
            disk: directory.join("disk.img"),
        };
        std::fs::write(&set.disk, &content).expect("the disk");
        World { set, content }
    }

    /// Makes files of what the power failure has left.
    fn put([cache, file]: &[Vec<u8>; 2], set: &Adopted) {
        let _ = std::fs::remove_file(&set.cache);
        sparse(&set.cache, BUCKET * u64::from(BUCKETS));
        let device = std::fs::File::options().write(true).open(&set.cache).expect("the cache");
        device.write_all_at(cache, 0).expect("the head");
        let _ = std::fs::remove_dir_all(set.headers());
        std::fs::create_dir(set.headers()).expect("a directory");
        let (files, new, header) = files(file);
        let name = format!("{}.header", uuid(5));
        for (number, name) in [(new, format!("{name}.new")), (header, name)] {
            if number > 0 {
                std::fs::write(set.headers().join(name), files[number - 1]).expect("a file");
            }
        }
    }

    /// Runs the command again, and looks at what it has made.
    fn finish(&self, when: &str) {
        let set = &self.set;
        let mut make = set.ubcache("make");
        make.args(["--bucket", "64k", "--label", "data", "-C", text(&set.cache)]);
        must(make.arg("--adopt").arg(&set.disk));
        let headers = self.headers();
        let [header] = headers.as_slice() else { panic!("{when}: {headers:?}") };
        let header = std::fs::read(header).expect("the header");
        let cache = std::fs::read(&set.cache).expect("the cache");
        let of_cache = Superblock::parse(&cache[4096..8192]).expect("a superblock");
        let copies: Vec<&[u8]> = header_copy_places(&of_cache)
            .map(|at| &cache[at.bytes() as usize..][..HEADER_BYTES])
            .filter(|bytes| HeaderRecord::read(bytes).is_some())
            .collect();
        assert!(copies == [header.as_slice()], "{when}: {} copies", copies.len());
        self.is_unchanged(when);
    }

    /// The headers; a file that a command began and did not name is none.
    fn headers(&self) -> Vec<PathBuf> {
        let names = names_in(&self.set.headers()).into_iter();
        let named = names.filter(|name| name.ends_with(".header"));
        named.map(|name| self.set.headers().join(name)).collect()
    }

    fn is_unchanged(&self, when: &str) {
        assert!(std::fs::read(&self.set.disk).expect("the disk") == self.content, "{when}");
    }

    /// The set starts, and gives the disk back.
    fn use_it(&self, when: &str) {
        let served = self.set.serve(&[]);
        let mut block = vec![0; 4096];
        served.client("data").read(4096, &mut block).expect("a read");
        assert!(block == self.content[4096..8192], "{when}");
        served.stop();
        let released = self.set.release();
        assert!(released.status.success(), "{when}: {}", support::adopted::said(&released));
        assert!(self.headers().is_empty(), "{when}");
        self.is_unchanged(when);
    }
}

#[test]
fn an_adoption_that_a_power_cut_ends_is_finished_by_the_same_command() {
    let scratch = scratch();
    let world = World::new(scratch.path());
    let mut numbers = Numbers::new(7);
    let mut images = [vec![0; HEAD], vec![0; NAMES.bytes() as usize + 512]];
    let mut cuts = 0;
    for first in [true, false] {
        let whole = Power::new(images);
        adopt(&whole, &world.set.disk, first);
        let mut seen = Vec::new();
        for moment in 0..whole.moments() {
            for luck in 0..5 {
                let left = whole.cut(moment, luck, &mut numbers);
                if seen.contains(&left) {
                    continue;
                }
                let when = format!("first: {first}, moment {moment}, luck {luck}");
                World::put(&left, &world.set);
                world.finish(&when);
                if cuts % 8 == 0 {
                    world.use_it(&when);
                }
                cuts += 1;
                seen.push(left);
            }
        }
        images = whole.images();
    }
    println!("{cuts} states after a power cut");
    assert!(cuts > 20, "{cuts}");
}
