//! The report of what was made.

use std::fmt::Write;

use serde_json::{Value, json};
use ubcache_format::SECTOR_BYTES;

use super::Made;

pub(super) fn describe(made: &Made) -> String {
    let (superblock, path) = (&made.superblock, made.path.display());
    let is_cache = superblock.is_cache();
    let mut text = String::new();
    let _ = writeln!(text, "Name\t\t\t{path}");
    let _ = writeln!(text, "Label\t\t\t{}", superblock.label_str());
    let _ = writeln!(text, "Type\t\t\t{}", if is_cache { "cache" } else { "data" });
    let _ = writeln!(text, "UUID:\t\t\t{}", superblock.uuid);
    let _ = writeln!(text, "Set UUID:\t\t{}", superblock.set_uuid);
    let _ = writeln!(text, "version:\t\t{}", superblock.version);
    if is_cache {
        let _ = writeln!(text, "nbuckets:\t\t{}", superblock.nbuckets);
        let _ = writeln!(text, "block_size_in_sectors:\t{}", superblock.block_sectors);
        let _ = writeln!(text, "bucket_size_in_sectors:\t{}", superblock.bucket_sectors);
        let _ = writeln!(text, "nr_in_set:\t\t1\nnr_this_dev:\t\t0");
        let _ = writeln!(text, "first_bucket:\t\t{}", superblock.first_bucket);
    } else {
        let _ = writeln!(text, "block_size_in_sectors:\t{}", superblock.block_sectors);
        let _ = writeln!(text, "data_offset_in_sectors:\t{}", superblock.data_offset());
    }
    if let Some(header) = &made.header {
        let _ = writeln!(text, "header:\t\t\t{}", header.display());
    }
    text + "\n"
}

pub(super) fn describe_json(made: &Made) -> Value {
    let superblock = &made.superblock;
    let mut value = json!({
        "path": made.path.display().to_string(),
        "type": if superblock.is_cache() { "cache" } else { "backing" },
        "uuid": superblock.uuid.to_string(),
        "set_uuid": superblock.set_uuid.to_string(),
        "label": superblock.label_str(),
        "version": superblock.version,
        "block_bytes": u64::from(superblock.block_sectors) * SECTOR_BYTES,
        "size_bytes": made.bytes,
    });
    if superblock.is_cache() {
        value["bucket_bytes"] = json!(u64::from(superblock.bucket_sectors) * SECTOR_BYTES);
        value["buckets"] = json!(superblock.nbuckets);
        value["first_bucket"] = json!(superblock.first_bucket);
    } else {
        value["data_offset_bytes"] = json!(superblock.data_offset().bytes());
        value["mode"] = json!(superblock.cache_mode().super_show_word());
    }
    if let Some(header) = &made.header {
        value["header"] = json!(header.display().to_string());
    }
    value
}
