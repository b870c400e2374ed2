//! Root and pages, as JSON: a person with `aws s3 cp` can read them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::names::Version;

/// First field of a root: what the object is of.
pub const FORMAT: &str = "ubcache volume";
/// The version of the format that this program writes and reads.
pub const VERSION: u64 = 1;
/// Objects that a page names.
pub const PAGE_ENTRIES: u64 = 1024;
/// Most pages of a volume: the root names them all, and a flush writes the root.
pub const PAGES_MAX: u64 = 16 << 10;
/// Smallest and largest object.
pub const OBJECT_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;
/// Size of an object unless another one is wanted.
pub const OBJECT_BYTES_DEFAULT: u64 = 4 << 20;

/// Sizes of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Size of the volume; whole sectors.
    pub size_bytes: u64,
    /// Size of an object; a power of two.
    pub object_bytes: u64,
}

impl Shape {
    /// Objects of the volume.
    pub fn objects(self) -> u64 {
        self.size_bytes.div_ceil(self.object_bytes)
    }

    /// Pages of the volume.
    pub fn pages(self) -> u64 {
        self.objects().div_ceil(PAGE_ENTRIES)
    }

    /// Says what is wrong with the sizes, if anything is.
    pub fn check(self) -> Result<(), ManifestError> {
        let Shape { size_bytes, object_bytes } = self;
        let wrong = |found: String, expected: &str| {
            Err(ManifestError { found, expected: expected.to_owned() })
        };
        if !object_bytes.is_power_of_two() || !OBJECT_BYTES.contains(&object_bytes) {
            let expected = "a power of two from 64 KiB to 64 MiB";
            return wrong(format!("objects of {object_bytes} bytes"), expected);
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(4096) {
            return wrong(format!("a size of {size_bytes} bytes"), "a multiple of 4096 bytes");
        }
        if self.pages() > PAGES_MAX {
            let most = PAGES_MAX * PAGE_ENTRIES * object_bytes;
            let expected = format!("at most {most} bytes, or larger objects");
            return wrong(format!("a size of {size_bytes} bytes"), &expected);
        }
        Ok(())
    }
}

/// The object that makes a volume of all others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Root {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u64,
    /// Random name of the volume, from when it was created.
    pub volume: String,
    /// See [`Shape`].
    pub size_bytes: u64,
    /// See [`Shape`].
    pub object_bytes: u64,
    /// Raised by each attachment for writing.
    pub epoch: u64,
    /// Random name of that attachment.
    pub writer: String,
    /// Number of this root among those of its writer, so that no two roots are the same.
    pub turn: u64,
    /// Name of each page; none where all objects are holes.
    pub pages: Vec<Option<Version>>,
}

impl Root {
    /// Sizes of the volume.
    pub fn shape(&self) -> Shape {
        Shape { size_bytes: self.size_bytes, object_bytes: self.object_bytes }
    }

    /// The text of it.
    pub fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("a root is plain data").into()
    }

    /// Reads a root. What is not one is named in the error.
    pub fn parse(bytes: &[u8]) -> Result<Root, ManifestError> {
        let expected = || format!("the root of a {FORMAT}, version {VERSION}");
        let wrong = |found: String| ManifestError { found, expected: expected() };
        let any: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("{} bytes that are no JSON: {error}", bytes.len())))?;
        if any["format"] != FORMAT {
            return Err(wrong(format!("\"format\": {}", any["format"])));
        }
        if any["version"] != VERSION {
            return Err(wrong(format!("version {}", any["version"])));
        }
        let root: Root = serde_json::from_value(any)
            .map_err(|error| wrong(format!("a root with an error: {error}")))?;
        root.shape().check()?;
        if root.pages.len() as u64 != root.shape().pages() {
            return Err(ManifestError {
                found: format!("a root that names {} pages", root.pages.len()),
                expected: format!("{} pages", root.shape().pages()),
            });
        }
        Ok(root)
    }
}

/// Names of [`PAGE_ENTRIES`] objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page {
    /// Its number.
    pub page: u64,
    /// Name of each object; none for a hole.
    pub objects: Vec<Option<Version>>,
}

impl Page {
    /// The text of it.
    pub fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("a page is plain data").into()
    }

    /// Reads the page of this number.
    pub fn parse(bytes: &[u8], page: u64) -> Result<Page, ManifestError> {
        let expected = || format!("page {page} with {PAGE_ENTRIES} names");
        let wrong = |found: String| ManifestError { found, expected: expected() };
        let found: Page = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("{} bytes with an error: {error}", bytes.len())))?;
        if found.page != page || found.objects.len() as u64 != PAGE_ENTRIES {
            let (page, names) = (found.page, found.objects.len());
            return Err(wrong(format!("page {page} with {names} names")));
        }
        Ok(found)
    }
}

/// A root or page that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("found {found}; expected {expected}")]
pub struct ManifestError {
    /// The first thing that is wrong.
    pub found: String,
    /// The thing that should be there.
    pub expected: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        Root {
            format: FORMAT.to_owned(),
            version: VERSION,
            volume: "v".to_owned(),
            size_bytes: 8 << 30,
            object_bytes: 4 << 20,
            epoch: 3,
            writer: "w".to_owned(),
            turn: 9,
            pages: vec![None, Some(Version(3, 17))],
        }
    }

    #[test]
    fn a_root_is_read_as_it_was_written() {
        assert_eq!(Root::parse(&root().to_bytes()), Ok(root()));
    }

    #[test]
    fn a_newer_version_is_refused_with_both_versions() {
        let newer = Root { version: 2, ..root() };
        let error = Root::parse(&newer.to_bytes()).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "found version 2; expected the root of a ubcache volume, version 1"
        );
    }

    #[test]
    fn other_objects_are_no_roots() {
        for other in ["", "{}", "[1]", "{\"format\":\"ubcache volume\",\"version\":1}"] {
            assert!(Root::parse(other.as_bytes()).is_err(), "{other}");
        }
        let short = Root { pages: vec![], ..root() };
        assert!(Root::parse(&short.to_bytes()).is_err());
    }

    #[test]
    fn sizes_that_make_no_volume_are_refused() {
        let check = |size_bytes, object_bytes| Shape { size_bytes, object_bytes }.check();
        assert!(check(1 << 40, 4 << 20).is_ok());
        assert!(check(1 << 40, 3 << 20).is_err());
        assert!(check(1 << 40, 4096).is_err());
        assert!(check(1000, 4 << 20).is_err());
        assert!(check(1 << 60, 4 << 20).is_err());
    }
}
