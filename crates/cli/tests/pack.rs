//! `pack` as a user runs it, and the tools that read a pack in the place of the cache device.

#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::crashed::{a_crashed_set, json, run};
use support::{names_in, scratch, sha256_of, ubcache};

#[test]
fn tools_read_a_pack_in_place_of_the_cache() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let before = (sha256_of(&cache), sha256_of(&backing));
    let file = directory.path().join("cache.pack");
    let told = json(&run(ubcache().arg("pack").arg(&cache).arg(&file).arg("--json"), 0));
    assert_eq!(told["clean"], true);
    assert_eq!(told["file_bytes"].as_u64(), std::fs::metadata(&file).ok().map(|file| file.len()));
    assert!(told["nodes"].as_u64().expect("a number") > 0);
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before);
    let packed = sha256_of(&file);

    // Commands that only read metadata print the same for both.
    for arguments in [&["dump"][..], &["dump", "--json", "--what", "extents"]] {
        let [of_cache, of_pack] = [&cache, &file]
            .map(|path| run(ubcache().arg(arguments[0]).arg(path).args(&arguments[1..]), 0).stdout);
        assert!(!of_cache.is_empty());
        assert_eq!(of_cache, of_pack, "{arguments:?}");
    }
    for arguments in [&["show"][..], &["show", "--json"]] {
        let [of_cache, of_pack] =
            [&cache, &file].map(|path| run(ubcache().args(arguments).arg(path), 0).stdout);
        assert!(!of_cache.is_empty());
        assert_eq!(of_cache, of_pack, "{arguments:?}");
    }
    for arguments in [&["cat", "--map", "--json"][..], &["recover", "--dry-run", "--json"]] {
        let [of_cache, of_pack] = [&cache, &file].map(|path| {
            run(ubcache().args(arguments).arg("-C").arg(path).arg("-B").arg(&backing), 0).stdout
        });
        assert_eq!(of_cache, of_pack, "{arguments:?}");
    }
    let report =
        json(&run(ubcache().arg("check").arg(&file).arg("-B").arg(&backing).arg("--json"), 0));
    assert_eq!(report["stats"]["dirty_sectors"], 60_473);
    assert_eq!(
        (&report["data_compared"], &report["stats"]["compared_sectors"]),
        (&false.into(), &0.into())
    );
    let said = run(ubcache().arg("check").arg(&file).arg("-B").arg(&backing), 0).stdout;
    assert!(String::from_utf8_lossy(&said).contains("not compared"));
    run(ubcache().arg("repair").arg(&file).arg("-B").arg(&backing).arg("--dry-run"), 0);

    // Commands that need data, or write, are refused before any change.
    let new = directory.path().join("new");
    let both = |command: &mut std::process::Command| {
        let said = run(command.arg("-B").arg(&backing), 2).stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("a pack") && said.contains("to do"), "{said}");
    };
    both(ubcache().arg("cat").arg("-C").arg(&file).arg("-o").arg(&new));
    both(ubcache().arg("recover").arg("-C").arg(&file));
    both(ubcache().arg("recover").arg("--detach").arg("-C").arg(&file));
    both(ubcache().arg("repair").arg(&file).arg("--out").arg(&new));
    both(ubcache().arg("repair").arg(&file).arg("--in-place").arg("--confirm").arg(&file));
    run(ubcache().arg("pack").arg(&file).arg(&new), 2);
    assert!(!new.exists());
    assert_eq!((sha256_of(&file), sha256_of(&backing)), (packed, before.1));
}

#[test]
fn refused_or_interrupted_pack_leaves_no_partial_file() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let file = directory.path().join("cache.pack");
    run(ubcache().arg("pack").arg(&cache).arg(&file), 0);
    let packed = sha256_of(&file);
    let files = names_in(directory.path());

    run(ubcache().arg("pack").arg(&cache).arg(&file), 2);
    run(ubcache().arg("pack").arg("--force").arg(&cache).arg(&cache), 2);
    run(ubcache().arg("pack").arg("--force").arg(&cache).arg(directory.path()), 2);
    run(ubcache().arg("pack").arg("--force").arg(&backing).arg(&file), 2);
    run(ubcache().arg("pack").arg("--force").arg("/dev/null").arg(&file), 2);
    assert_eq!((sha256_of(&file), names_in(directory.path())), (packed.clone(), files.clone()));
    run(ubcache().arg("pack").arg("--force").arg(&cache).arg(&file), 0);
    assert_eq!(
        (sha256_of(&file), names_in(directory.path())),
        (packed, files),
        "the same set, the same pack"
    );

    let whole = std::fs::read(&file).expect("a pack");
    std::fs::write(&file, &whole[..whole.len() - 4096]).expect("room");
    let said = run(ubcache().arg("check").arg(&file), 2).stderr;
    assert!(String::from_utf8_lossy(&said).contains("cut short"));
}

#[test]
fn a_damaged_set_is_packed_with_its_damage() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let file = directory.path().join("cache.pack");
    let mut image = std::fs::read(&cache).expect("an image");
    let dump = run(ubcache().arg("dump").arg(&cache).args(["--what", "btree", "--json"]), 0).stdout;
    let first: serde_json::Value =
        serde_json::from_slice(dump.split(|byte| *byte == b'\n').next().expect("a line"))
            .expect("JSON");
    let sector = first["key"]["pointers"][0]["sector"].as_u64().expect("the root");
    image[sector as usize * 512 + 40] ^= 1;
    std::fs::write(&cache, &image).expect("room");
    let told = json(&run(ubcache().arg("pack").arg(&cache).arg(&file).arg("--json"), 1));
    assert_eq!(told["clean"], false);
    assert!(
        told["nodes_found"].as_u64().expect("a number") > 0,
        "the leaves that nothing leads to: {told}"
    );
    let dry = |path: &Path| {
        let told = run(
            ubcache().arg("repair").arg(path).arg("-B").arg(&backing).args(["--dry-run", "--json"]),
            1,
        );
        json(&told)["uncertain"].clone()
    };
    assert_eq!(dry(&file), dry(&cache));
    run(ubcache().arg("check").arg(&file), 1);

    // Without a superblock it takes the name of a backing device to find the set.
    image[4096..8192].fill(0);
    std::fs::write(&cache, &image).expect("room");
    run(ubcache().arg("pack").arg("--force").arg(&cache).arg(&file), 2);
    let told = json(&run(
        ubcache()
            .arg("pack")
            .args(["--force", "--json"])
            .arg(&cache)
            .arg(&file)
            .arg("-B")
            .arg(&backing),
        1,
    ));
    assert!(told["superblock"].as_str().expect("found again").contains("found again"), "{told}");
    assert_eq!(dry(&file), dry(&cache));
}
