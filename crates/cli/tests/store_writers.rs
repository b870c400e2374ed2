//! Two daemons that want one volume on an object store (moto): copies of its cache, on machines of
//! their own, for instance.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::moto::Moto;
use support::volume_by_hand::volume_by_hand;
use support::{Daemon, NO_BYPASS, must, pseudo_random, scratch, tool, ubcache};
use ubcache_cli::nbd_client::Client;

/// The data of the volume begins here.
const DATA_AT: u64 = 8192;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;

/// Makes the volume, and a directory with the cache for each daemon.
fn make(directory: &Path, moto: &Moto) -> [PathBuf; 2] {
    let places = ["one", "two"].map(|name| directory.join(name));
    for place in &places {
        std::fs::create_dir(place).expect("a directory");
    }
    let mut make = ubcache();
    make.args(["make", "--size", "48M", "--bucket", "64k", "--label", "data", "-C"]);
    make.arg(places[0].join("cache.img")).arg("-B").arg(moto.uri("disk", "&size=16M&object=1M"));
    must(&mut make);
    places
}

fn start(place: &Path, uri: &Path) -> Result<Daemon, String> {
    let cache = place.join("cache.img");
    let options = [&["--mode", "writethrough"][..], &NO_BYPASS].concat();
    Daemon::try_start("pool", place, &cache, &[uri.to_owned()], &options)
        .map_err(|(status, said)| format!("{status}: {said}"))
}

fn copy_cache(from: &Path, to: &Path) {
    std::fs::copy(from.join("cache.img"), to.join("cache.img")).expect("a copy");
}

/// A block of its number and of who wrote it.
fn block(index: u64, version: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    pseudo_random(version << 8 | index, &mut block);
    block
}

fn write_all(client: &mut Client, version: u64) {
    for index in 0..BLOCKS {
        client.write(index * BLOCK, &block(index, version), false).expect("a write");
    }
    client.flush().expect("a flush");
}

fn compare(what: &str, version: u64, mut read: impl FnMut(u64, &mut [u8])) {
    let mut found = vec![0; BLOCK as usize];
    for index in 0..BLOCKS {
        read(index * BLOCK, &mut found);
        assert!(found == block(index, version), "{what}: block {index}, version {version}");
    }
}

#[test]
fn of_two_daemons_that_start_at_the_same_time_one_serves_a_volume() {
    let scratch = scratch();
    let moto = Moto::start(scratch.path());
    let mut places = make(scratch.path(), &moto);
    let uri = moto.uri("disk", "");
    for round in 1..=3 {
        // The first one is that of the round before: it has the cache of the newest run.
        copy_cache(&places[0], &places[1]);
        let started = std::thread::scope(|scope| {
            let uri = &uri;
            let both = places.each_ref().map(|place| scope.spawn(move || start(place, uri)));
            both.map(|one| one.join().expect("no panic"))
        });
        let (winner, said) = match started {
            [Ok(winner), Err(said)] => (winner, said),
            [Err(said), Ok(winner)] => {
                places.swap(0, 1);
                (winner, said)
            }
            [Ok(_), Ok(_)] => panic!("round {round}: both of them serve"),
            [Err(one), Err(two)] => panic!("round {round}: none of them serves: {one}\n{two}"),
        };
        for words in ["the volume is in use", "found", "stop that daemon"] {
            assert!(said.contains(words), "round {round}: {words}: {said}");
        }
        let mut client = winner.client("data");
        if round > 1 {
            compare("what the round before wrote", round - 1, |at, found| {
                client.read(at, found).expect("a read");
            });
        }
        write_all(&mut client, round);
        drop(client);
        match round % 2 {
            0 => winner.stop(),
            _ => winner.kill(),
        }
        compare_store(&moto, round);
    }
}

/// The daemon of a virtual machine that was suspended, for instance. Its lease is given to another
/// one after a while, and then it goes on with the write that it was at.
#[test]
fn late_writes_of_a_daemon_that_lost_its_volume_are_never_read() {
    let scratch = scratch();
    let moto = Moto::start(scratch.path());
    let [one, two] = make(scratch.path(), &moto);
    let uri = moto.uri("disk", "");
    let old = start(&one, &uri).expect("it serves");
    let signal = |name: &str| must(tool("kill").args([name, &old.id().to_string()]));
    let answered = Arc::new(AtomicU64::new(0));
    let writer = std::thread::spawn({
        let (mut client, answered) = (old.client("data"), answered.clone());
        move || {
            // All blocks with one version, then with the next one, until a write is refused.
            for version in 1.. {
                for index in 0..BLOCKS {
                    let written = client.write(index * BLOCK, &block(index, version), true);
                    if let Err(error) = written {
                        return error;
                    }
                    answered.store(version * BLOCKS + index, Ordering::SeqCst);
                }
            }
            unreachable!("it goes on until then")
        }
    });
    while answered.load(Ordering::SeqCst) < 3 * BLOCKS {
        assert!(!writer.is_finished(), "a write is refused");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal("-STOP");
    copy_cache(&one, &two);
    let new = start(&two, &uri).expect("the lease is nobody's after a while");
    let last = answered.load(Ordering::SeqCst);
    let mut client = new.client("data");
    let mut found = vec![0; BLOCK as usize];
    for index in 0..BLOCKS {
        client.read(index * BLOCK, &mut found).expect("a read");
        let version = (last - index) / BLOCKS;
        // The write after the last one that was answered may be there, too.
        let is_next = last + 1 == (version + 1) * BLOCKS + index;
        let may_be_next = is_next && found == block(index, version + 1);
        assert!(found == block(index, version) || may_be_next, "block {index} of {version}");
    }
    write_all(&mut client, 1000);
    signal("-CONT");
    let error = writer.join().expect("no panic");
    println!("the old one: {error}");
    // One at most was done before it was suspended, and is answered only now.
    assert!(answered.load(Ordering::SeqCst) <= last + 1, "it goes on writing");
    // It knows the reason at the next renewal of its lease at the latest.
    let log = || std::fs::read_to_string(one.join("serve.log")).expect("a log");
    while !log().contains("the volume has another writer") {
        std::thread::sleep(Duration::from_millis(20));
    }
    compare("the new one", 1000, |at, found| client.read(at, found).expect("a read"));
    drop(client);
    new.kill();
    old.kill();
    let new = start(&two, &uri).expect("it serves");
    let mut client = new.client("data");
    compare("after a crash", 1000, |at, found| client.read(at, found).expect("a read"));
    drop(client);
    new.stop();
    compare_store(&moto, 1000);
}

fn compare_store(moto: &Moto, version: u64) {
    let volume = volume_by_hand(moto, "disk");
    compare("the store", version, |at, found| {
        let at = (DATA_AT + at) as usize;
        found.copy_from_slice(&volume[at..at + found.len()]);
    });
}
