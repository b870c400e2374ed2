//! A file for each device with the names of its volume: `/run/ubcache/ublk/N`. The udev rule
//! imports it, and makes links by label and by UUID.

use std::fs;
use std::io;
use std::path::PathBuf;

use ubcache_format::Uuid;

const DIRECTORY: &str = "/run/ubcache/ublk";

/// Names of the volume behind a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record<'a> {
    pub(super) export: &'a str,
    pub(super) label: &'a str,
    pub(super) uuid: Uuid,
    /// The chain of starts that its requests count on.
    pub(super) lineage: Option<u64>,
}

fn path(device: u32) -> PathBuf {
    PathBuf::from(DIRECTORY).join(device.to_string())
}

impl Record<'_> {
    /// Writes the file of a device.
    pub(super) fn write(&self, device: u32) -> io::Result<()> {
        fs::create_dir_all(DIRECTORY)?;
        fs::write(path(device), self.text())
    }

    fn text(&self) -> String {
        let lineage = self.lineage.map(|number| format!("UBCACHE_LINEAGE={number:016x}\n"));
        format!(
            "UBCACHE_EXPORT={}\nUBCACHE_LABEL={}\nUBCACHE_UUID={}\n{}",
            plain(self.export),
            plain(self.label),
            self.uuid,
            lineage.unwrap_or_default()
        )
    }
}

/// Name of the export behind a device, if its file is there.
pub fn export_of(device: u32) -> Option<String> {
    value_of(device, "UBCACHE_EXPORT=")
}

/// The chain of starts that the requests of a device count on.
pub(super) fn lineage_of(device: u32) -> Option<u64> {
    u64::from_str_radix(&value_of(device, "UBCACHE_LINEAGE=")?, 16).ok()
}

fn value_of(device: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(path(device)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// Removes the file of a device.
pub fn remove(device: u32) {
    // It may have been removed by hand.
    let _ = fs::remove_file(path(device));
}

/// The text with everything replaced that is not plain in the name of a link.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+:".contains(c) { c } else { '_' };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_no_name_that_leads_elsewhere() {
        let record = Record { export: "../a b", label: "x\ny", uuid: Uuid([1; 16]), lineage: None };
        let text = record.text();
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("UBCACHE_EXPORT=.._a_b\nUBCACHE_LABEL=x_y\n"), "{text}");
    }
}
