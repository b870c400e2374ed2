//! Backing devices on an object store: moto serves S3, and a set caches a volume on it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::moto::Moto;
use support::{Daemon, NO_BYPASS, must, pseudo_random, run, scratch, text, ubcache};

const MIB: u64 = 1 << 20;

fn make(directory: &Path, uri: &Path) -> PathBuf {
    let cache = directory.join("cache.img");
    let mut make = ubcache();
    make.args(["make", "--size", "64M", "--bucket", "64k", "--label", "data", "--writeback"]);
    must(make.arg("-C").arg(&cache).arg("-B").arg(uri));
    cache
}

#[test]
fn a_volume_on_an_object_store_is_made_served_and_found_again_after_a_crash() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = make(directory, &moto.uri("disks/one", "&size=256M&object=1M"));
    let uri = moto.uri("disks/one", "");
    let shown = must(ubcache().arg("show").arg(&uri));
    assert!(shown.contains("backing device") && shown.contains("data"), "{shown}");

    let daemon = Daemon::start("pool", directory, &cache, std::slice::from_ref(&uri), &NO_BYPASS);
    let mut content = vec![0; 4 * MIB as usize];
    pseudo_random(7, &mut content);
    let mut client = daemon.client("data");
    for (at, piece) in (0..).step_by(65_536).zip(content.chunks(65_536)) {
        client.write(at, piece, false).expect("a write");
    }
    client.flush().expect("a flush");
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
    let connection = daemon.status()["sets"][0]["volumes"][0]["backing"]["connection"].clone();
    assert_eq!(connection["state"], "connected", "{connection}");
    // Another daemon does not get it, nor does a command that writes.
    let other = directory.join("other.img");
    let arguments =
        ["make", "--size", "64M", "--bucket", "64k", "-C", text(&other), "-B", text(&uri)];
    let refused = String::from_utf8_lossy(&run(&arguments).stderr).into_owned();
    assert!(refused.contains("in use") && refused.contains("process"), "{refused}");
    drop(client);
    daemon.kill();

    // The data is on the store, whatever the cache has.
    let daemon = Daemon::start("pool", directory, &cache, &[uri], &NO_BYPASS);
    let mut read = vec![0; content.len()];
    daemon.client("data").read(0, &mut read).expect("a read");
    assert!(read == content, "after a crash");
    daemon.stop();
    let listing = moto.request("GET /bucket?list-type=2&prefix=disks/one/data/");
    let objects = listing.matches("<Key>disks/one/data/").count();
    assert!((5..=6).contains(&objects), "{listing}");
}

#[test]
fn volumes_that_can_not_be_served_are_refused_with_what_to_do() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = directory.join("cache.img");
    let refused = |uri: &Path| {
        let arguments =
            ["make", "--size", "64M", "--bucket", "64k", "-C", text(&cache), "-B", text(uri)];
        let output = run(&arguments);
        assert!(!output.status.success(), "{uri:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&moto.uri("none", ""));
    assert!(said.contains("no volume") && said.contains("size="), "{said}");
    let missing = text(&moto.uri("x", "&size=64M")).replace("bucket", "nothing");
    let said = refused(Path::new(&missing));
    assert!(said.contains("NoSuchBucket"), "{said}");
    make(directory, &moto.uri("disk", "&size=64M"));
    std::fs::remove_file(&cache).expect("the cache");
    let said = refused(&moto.uri("disk", "&size=128M"));
    assert!(said.contains("another size") && said.contains("64"), "{said}");
    let away = Path::new("s3://bucket/x?size=64M&endpoint=http://127.0.0.1:9");
    let said = refused(&PathBuf::from(format!(
        "{}&credentials={}",
        away.display(),
        text(&moto.credentials)
    )));
    assert!(said.contains("no answer") && said.contains("endpoint"), "{said}");
}
