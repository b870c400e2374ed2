//! Packs: the metadata of a cache device in one compressed file, to be attached to a bug report.
//!
//! ```text
//!  0         4096                       index offset                     file bytes − 4096
//!  │ header  │ chunk │ chunk │ …        │ index, compressed │ zero bytes │ trailer │
//!
//!  header    0 magic "ubcache-pack\r\n\x1a\n" │ 16 version u32 │ 20 logical block bytes u32
//!            24 device bytes u64
//!            32 who wrote it, 32 bytes of text │ … zero │ 4088 crc
//!  chunk     zstd of up to 256 KiB: the bytes of its pieces one behind the other
//!  index     for each chunk   │ offset u64 │ packed bytes u32 │ raw bytes u32
//!                             │ crc of the packed bytes u64 │ pieces u32 │
//!            for each piece   │ first sector u64 │ sectors u32
//!                             │ state u32: 0 it is in the chunk, 1 it was unreadable │
//!            then its pieces, in order of sectors over the whole index
//!  trailer   0 magic "ubcache-pack-end" │ 16 file bytes u64 │ 24 index offset u64
//!            32 index packed bytes u64 │ 40 index raw bytes u64
//!            48 crc of the packed index u64 │ 56 chunks u64 │ … zero │ 4088 crc
//! ```
//!
//! Numbers are little-endian, checksums CRC-64/WE; the trailer's covers the way to all others, so
//! every byte that is read was checked. A file is whole 4096-byte blocks, and is written from its
//! start to its end.
//!
//! Contents: the superblock, the journal ring, the prio chain, the volume table, all nodes of the
//! tree, and everything else on the device that looks like a node, a prio set or a volume table of
//! the set. *User data is not included*, not even data that an earlier use of a bucket left behind
//! a node's last key: see `blank.rs`. Labels and UUIDs are included.
//!
//! [`Packed`] reads it as if it were the device; what is not in it reads as
//! [`IoError::Absent`](ubcache_env::IoError). Memory: 24 bytes for each piece and 28 for each
//! chunk, the index once more while it is opened, and 8 MiB of chunks that were read last. An index
//! of more than 32 MiB and 8 bytes for each byte of the file is refused: no pack has one.

pub(crate) mod blank;
mod device;
mod layout;
mod plan;
mod write;

pub use self::device::{Cache, PackError, Packed};
pub use self::layout::is_pack;
pub use self::write::{Packing, pack};
