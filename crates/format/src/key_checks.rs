//! Checks of keys: what is fatal to a set in the key of an extent, a journal record or a node.

use crate::error::{FormatError, Structure};
use crate::geometry::Geometry;
use crate::key::Key;

impl Key {
    /// Checks what is fatal to a set in the key of an extent (docs/reference/format.md §4.5). A key
    /// of size 0 passes: it is to be ignored in every respect.
    pub fn check_extent(&self, geometry: &Geometry) -> Result<(), FormatError> {
        if self.sectors == 0 {
            return Ok(());
        }
        self.check_end()?;
        if u64::from(self.sectors) > self.end.0 {
            let most = format_args!("at most the end of the extent, {}", self.end);
            return Err(FormatError::value(
                Structure::Key,
                0,
                "size of the extent",
                self.sectors,
                most,
            ));
        }
        self.check_pointers(geometry)
    }

    /// Checks what is fatal to a set in a key of the journal: as in a leaf, and its size must not
    /// be 0.
    pub fn check_journaled(&self, geometry: &Geometry) -> Result<(), FormatError> {
        if self.sectors == 0 {
            return Err(FormatError::value(
                Structure::Key,
                0,
                "size of a journaled extent",
                0,
                "at least 1",
            ));
        }
        self.check_extent(geometry)
    }

    /// Checks what is fatal to a set in the key of a btree node or the volume table, freeing keys
    /// included (docs/reference/format.md §4.5).
    pub fn check_node(&self, geometry: &Geometry) -> Result<(), FormatError> {
        let wrong = |field, found: &str, expected| {
            Err(FormatError::value(Structure::Key, 0, field, found, expected))
        };
        if self.pointers.is_empty() {
            return wrong("number of pointers of a node", "0", "at least 1");
        }
        if self.pointer().is_none() {
            return wrong("cache device of a node", "none", "the one of the set");
        }
        if self.sectors == 0 {
            return wrong("size of a node", "0", "at least 1");
        }
        if self.dirty {
            return wrong("dirty bit of a node", "1", "0");
        }
        self.check_end()?;
        self.check_pointers(geometry)
    }

    fn check_end(&self) -> Result<(), FormatError> {
        if self.end.0 > Key::MAX_END {
            let most = format_args!("at most {}", Key::MAX_END);
            return Err(FormatError::value(Structure::Key, 8, "end of the key", self.end, most));
        }
        Ok(())
    }

    fn check_pointers(&self, geometry: &Geometry) -> Result<(), FormatError> {
        for (index, pointer) in self.pointers.iter().enumerate() {
            let at = 16 + 8 * index as u64;
            if pointer.is_elsewhere() {
                let field = "cache device of the pointer";
                let only = "0: sets of several cache devices are not supported";
                return Err(FormatError::value(Structure::Key, at, field, pointer.device, only));
            }
            if !pointer.is_available() {
                continue;
            }
            let bucket = pointer.bucket(geometry.bucket_sectors);
            if !geometry.is_usable(bucket) {
                let usable = format_args!(
                    "{} to {}",
                    geometry.first_bucket,
                    geometry.buckets.saturating_sub(1)
                );
                return Err(FormatError::value(
                    Structure::Key,
                    at,
                    "bucket of the pointer",
                    bucket,
                    usable,
                ));
            }
            let end = pointer.offset - geometry.bucket_start(bucket) + u64::from(self.sectors);
            if end > u64::from(geometry.bucket_sectors) {
                let most =
                    format_args!("at most {}, the sectors in a bucket", geometry.bucket_sectors);
                return Err(FormatError::value(
                    Structure::Key,
                    at,
                    "end inside the bucket",
                    end,
                    most,
                ));
            }
        }
        Ok(())
    }
}
