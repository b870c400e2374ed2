//! Devices that the Linux driver wrote read as the Linux driver reads them.
//!
//! `fixtures/` has four frozen cases (its README.md describes them). If the environment variable
//! `UBCACHE_KERNEL_IMAGES` names a directory with more cases of the same form, all of them are
//! checked as well.

mod reader;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use reader::{Result, Set, superblock};
use serde_json::Value;
use sha2::{Digest, Sha256};
use ubcache_format::*;

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(packed.as_slice(), false).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().ok_or_else(|| format!("no number {name} in the manifest").into())
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().ok_or_else(|| format!("no text {name} in the manifest").into())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks everything that is known of one case.
fn check_case(directory: &Path) -> Result<()> {
    let manifest: Value = serde_json::from_slice(&fs::read(directory.join("manifest.json"))?)?;
    let cache = unpacked(&directory.join("cache.img.xz"))?;
    let set = Set::open(&cache)?;
    assert_eq!(set.geometry.bucket_bytes(), number(&manifest, "bucket_bytes")?);
    assert_eq!(set.geometry.block_bytes(), number(&manifest, "block_bytes")?);
    check_encoding(&set, &cache);
    let keys: usize = set.replayed.iter().map(|entry| entry.keys.len()).sum();
    println!(
        "{}: root level {:?}, {} nodes, {} extents, {} entries with {keys} keys replayed",
        directory.display(),
        set.replayed.last().map(|entry| entry.root_level),
        set.nodes.len(),
        set.extents.len(),
        set.replayed.len(),
    );
    for device in manifest["devices"].as_array().ok_or("no devices in the manifest")? {
        let (volume, inode) = match device["backing"].as_str() {
            Some(name) => {
                let backing = unpacked(&directory.join(format!("{name}.xz")))?;
                assert_eq!(
                    superblock(&backing)?.encode(),
                    backing[4096..8192],
                    "superblock of {name}"
                );
                set.backed_volume(&backing)?
            }
            None => {
                let slot = set.uuids.iter().position(|entry| entry.flash_only && entry.is_live());
                let inode = Inode(slot.ok_or("no flash-only volume")? as u32);
                (set.flash_only_volume(inode)?, Some(inode))
            }
        };
        assert_eq!(volume.len() as u64, number(device, "bytes")?);
        let dirty = inode.map_or(0, |inode| set.dirty_sectors(inode));
        assert_eq!(dirty, number(device, "dirty_sectors")?, "dirty sectors");
        check_content(&volume, device, directory)?;
        assert_eq!(hexadecimal(&Sha256::digest(&volume)), text(device, "sha256")?);
    }
    Ok(())
}

/// Compares a volume with the list of its content, so that a failure names the first wrong sector.
fn check_content(volume: &[u8], device: &Value, directory: &Path) -> Result<()> {
    let list = directory.join(text(device, "content")?);
    let list = if list.extension().is_some_and(|e| e == "xz") {
        unpacked(&list)?
    } else {
        fs::read(&list)?
    };
    let salt = u64::from_str_radix(text(device, "salt")?.trim_start_matches("0x"), 16)?;
    let mut expected = vec![0_u64; volume.len() / 512];
    for line in String::from_utf8(list)?.lines() {
        let numbers =
            line.split(' ').map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
        let [first, count, generation] = numbers[..] else {
            return Err(format!("{line:?} in the list").into());
        };
        for sector in first..first + count {
            expected[sector as usize] = salt ^ (sector << 16 | generation);
        }
    }
    for (sector, (bytes, word)) in volume.chunks_exact(512).zip(expected).enumerate() {
        let word = word.to_le_bytes();
        assert!(
            bytes.chunks_exact(8).all(|found| found == word),
            "sector {sector} of {}",
            text(device, "content")?
        );
    }
    Ok(())
}

/// Whatever the driver wrote, encoding what was parsed gives the same bytes, padding aside.
fn check_encoding(set: &Set<'_>, cache: &[u8]) {
    assert_eq!(set.superblock.encode(), cache[4096..8192], "superblock of the cache device");
    for (key, node) in &set.nodes {
        let pointer = key.pointers[0];
        let mut at = pointer.offset.bytes() as usize;
        for keys in &node.bsets {
            let bytes = encode_bset(&set.geometry, pointer, node.seq, keys);
            let used = 32 + 8 * keys.iter().map(Key::words).sum::<usize>();
            // A placeholder may have any value in a bit that is not kept.
            if !keys.iter().any(Key::is_placeholder) {
                assert_eq!(bytes[..used], cache[at..at + used], "bset at byte {at}");
            }
            at += bytes.len();
        }
        assert_eq!(at as u64, pointer.offset.bytes() + node.used_bytes);
    }
}

fn fixture(name: &str) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    check_case(&directory).expect("a readable case");
}

#[test]
fn fresh() {
    fixture("fresh");
}

#[test]
fn writeback_clean() {
    fixture("writeback-clean");
}

#[test]
fn writeback_crash() {
    fixture("writeback-crash");
}

#[test]
fn writethrough_mixed() {
    fixture("writethrough-mixed");
}

#[test]
fn further_images_of_the_driver_are_read() {
    let Some(directory) = std::env::var_os("UBCACHE_KERNEL_IMAGES") else {
        println!("skipped: UBCACHE_KERNEL_IMAGES names no directory of device images");
        return;
    };
    let mut cases: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry of the directory").path())
        .filter(|path| path.join("manifest.json").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "the directory has no case in it");
    for case in cases {
        check_case(&case).unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    }
}
