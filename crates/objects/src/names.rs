//! Names of objects and pages: each is used for one content, once.

use serde::{Deserialize, Serialize};

/// Key of the root.
pub const ROOT: &str = "root";
/// Key of the lease.
pub const LEASE: &str = "lease";
/// Beginning of the keys of objects.
pub const DATA: &str = "data/";
/// Beginning of the keys of pages.
pub const PAGES: &str = "pages/";

/// The part of a name that makes it unique: the epoch of its writer, and a number that the writer
/// gives once.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Version(pub u64, pub u64);

impl Version {
    /// Epoch of the writer.
    pub fn epoch(self) -> u64 {
        self.0
    }
}

/// Key of an object of the volume.
pub fn data_key(index: u64, version: Version) -> String {
    key(DATA, index, version)
}

/// Key of a page.
pub fn page_key(page: u64, version: Version) -> String {
    key(PAGES, page, version)
}

fn key(prefix: &str, number: u64, Version(epoch, serial): Version) -> String {
    format!("{prefix}{number:08x}-{epoch:x}-{serial:x}")
}

/// Number and version of a key of an object or page; none if it is not of this form.
pub fn parse(prefix: &str, key: &str) -> Option<(u64, Version)> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut parts = key.strip_prefix(prefix)?.split('-');
    let (number, epoch, serial) = (parts.next()?, parts.next()?, parts.next()?);
    let found = (hex(number)?, Version(hex(epoch)?, hex(serial)?));
    (self::key(prefix, found.0, found.1) == key).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_parsed_as_they_were_made_and_no_others() {
        let version = Version(3, 255);
        assert_eq!(data_key(42, version), "data/0000002a-3-ff");
        assert_eq!(parse(DATA, "data/0000002a-3-ff"), Some((42, version)));
        for other in ["data/2a-3-ff", "data/0000002a-3", "data/0000002a-3-ff-1", "pages/x"] {
            assert_eq!(parse(DATA, other), None, "{other}");
        }
    }
}
