//! `ubcache release` as far as it writes to devices: the dirty data of an adopted disk goes to the
//! disk, its header says so, its copy on the cache device goes. The power fails at each write and
//! flush, and the same steps finish.

mod support;

use std::rc::Rc;

use support::power::{Numbers, Power, PowerDevice};
use support::{digest, frozen, run};
use ubcache_env::joined::{Header, copy_of, erase_copy, first_record, place_for_copy};
use ubcache_env::{Buf, Device, Durability, Joined, Witness};
use ubcache_format::{BackingState, HEADER_BYTES, RECORD_BYTES, SUPERBLOCK_SECTOR, Superblock};
use ubcache_offline::{RecoverOptions, recover};

const IDENTITY: &str = "a disk";
const CACHE: usize = 0;
const DISK: usize = 1;
const HEADER: usize = 2;

fn superblock_of(device: &Rc<PowerDevice>) -> Superblock {
    let (bytes, read) = run(device.read(SUPERBLOCK_SECTOR, Buf::zeroed(4096)));
    read.expect("no faults");
    Superblock::parse(bytes.as_slice()).expect("a superblock")
}

/// A frozen set whose backing device is a header and a disk, with a copy of the header.
fn adopted() -> ([Vec<u8>; 3], String) {
    let case = frozen("writeback-crash");
    let backing = case.volumes()[0].backing.clone().expect("a backing device");
    let (head, disk) = backing.split_at(HEADER_BYTES);
    let power = Power::new([case.cache.clone(), disk.to_vec(), head.to_vec()]);
    let superblock = superblock_of(&power.devices[HEADER]);
    let record = run(first_record(&power.devices[DISK], superblock.uuid, IDENTITY));
    let mut header = record.expect("no faults").encode();
    header.resize(2 * RECORD_BYTES, 0);
    header.extend_from_slice(&head[2 * RECORD_BYTES..]);
    let cache = &power.devices[CACHE];
    let place = run(place_for_copy(cache, &superblock_of(cache), superblock.uuid));
    if let Some(at) = place.expect("no faults") {
        let copy = Buf::from_bytes(&header).into();
        run(cache.write(at, copy, Durability::Fua)).expect("no faults");
    }
    let [cache, disk, _] = power.images();
    ([cache, disk, header], case.volumes()[0].sha256.clone())
}

/// The steps of the command.
fn release(power: &Power<3>) {
    let [cache, disk, file] = &power.devices;
    let state = superblock_of(file).state();
    if matches!(state, BackingState::Clean | BackingState::Dirty) {
        let header = run(Header::open(file.clone(), None, IDENTITY)).expect("a header");
        let joined = Joined::new(disk.clone(), header);
        let witness = run(joined.witness()).expect("no faults");
        assert!(
            !matches!(witness, Witness::Different { .. } | Witness::Resized { .. }),
            "nobody else wrote: {witness:?}"
        );
        let options = RecoverOptions { detach: true, dry_run: false, damaged: false };
        run(recover(&Joined::from(cache.clone()), &joined, options, &())).expect("a recovery");
    }
    let of_cache = superblock_of(cache);
    run(erase_copy(cache, &of_cache, superblock_of(file).uuid)).expect("no faults");
}

fn check(power: &Power<3>) {
    let [cache, _, file] = &power.devices;
    let superblock = superblock_of(file);
    assert_eq!(superblock.state(), BackingState::None);
    assert!(
        run(copy_of(cache, &superblock_of(cache), superblock.uuid)).expect("it reads").is_none()
    );
}

#[test]
fn a_power_cut_at_any_write_of_a_release_loses_nothing() {
    let (images, expected) = adopted();
    let whole = Power::new(images);
    release(&whole);
    check(&whole);
    assert_eq!(digest(&whole.images()[DISK]), expected, "the disk has everything");
    let mut numbers = Numbers::new(5);
    let expected = &whole.images()[DISK];
    // Many writes carry data; those of the header are the first ones and among the last.
    let all = whole.moments();
    let moments: Vec<usize> = (0..3).chain([all / 2]).chain(all - 8..all).collect();
    for (&moment, luck) in moments.iter().zip([0, 2, 1].into_iter().cycle()) {
        let again = Power::new(whole.cut(moment, luck, &mut numbers));
        release(&again);
        check(&again);
        assert!(again.images()[DISK] == *expected, "moment {moment}: other bytes on the disk");
    }
    println!("{} moments of {all}", moments.len());
}
