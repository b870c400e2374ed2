//! Recognizes the content of a device, so that `make` does not destroy it unasked.

use crate::failure::Failure;
use crate::open::target::Target;

/// Something that was recognized by its magic number.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// Kind of content that it belongs to.
    pub name: &'static str,
    /// True for a bcache superblock.
    pub is_bcache: bool,
    /// Offset of its magic number, in bytes.
    pub at: u64,
    /// Length of the magic number in bytes.
    pub bytes: u64,
}

/// The magic number of a bcache superblock.
pub const BCACHE_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];

/// Offset of that magic number, in bytes.
pub const BCACHE_MAGIC_AT: u64 = 4120;

/// The name at the begin of the sectors of a disk whose data is being moved in place.
const MOVED_MAGIC: &[u8] = b"ubcache is moved";
/// The same in words.
const MOVED: &str = "a disk whose data is being moved in place";

const EXT: &str = "an ext2, ext3 or ext4 file system";
const XFS: &str = "an XFS file system";
const BOOT_SECTOR: &str = "an MBR partition table or boot sector";

const BCACHEFS_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];

/// Known signatures, the more specific before the less specific.
const KNOWN: &[(&str, u64, &[u8])] = &[
    (MOVED, 0, MOVED_MAGIC),
    (MOVED, 4096, MOVED_MAGIC),
    ("a bcache superblock", BCACHE_MAGIC_AT, &BCACHE_MAGIC),
    ("a bcachefs file system", BCACHE_MAGIC_AT, &BCACHEFS_MAGIC),
    (EXT, 1080, &[0x53, 0xef]),
    (XFS, 0, b"XFSB"),
    ("a btrfs file system", 65_600, b"_BHRfS_M"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of an MD array", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a member of an MD array", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 82, b"FAT32   "),
    ("an ISO 9660 file system", 32_769, b"CD001"),
    ("a squashfs file system", 0, b"hsqs"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    (BOOT_SECTOR, 510, &[0x55, 0xaa]),
];

/// Number of bytes that have to be read for [`recognize`].
const HEAD_BYTES: usize = 68 << 10;

/// Everything recognized in the first bytes of a device.
pub fn recognize(head: &[u8]) -> Vec<Signature> {
    KNOWN
        .iter()
        .filter(|(_, at, magic)| head.get(*at as usize..*at as usize + magic.len()) == Some(*magic))
        .map(|&(name, at, magic)| Signature {
            name,
            is_bcache: magic == BCACHE_MAGIC,
            at,
            bytes: magic.len() as u64,
        })
        .collect()
}

/// The first of those that may be found by more than their first 4 KiB: all but ext2, ext3 and
/// ext4, or XFS, and a boot sector beside them.
pub fn found_elsewhere(found: &[Signature]) -> Option<&Signature> {
    let own = found.iter().map(|it| it.name).find(|name| [EXT, XFS].contains(name));
    found.iter().find(|it| own.is_none_or(|own| it.name != own && it.name != BOOT_SECTOR))
}

/// Refuses a disk whose data is being moved in place.
///
/// # Errors
/// It is one, or can't be read.
pub fn refuse_moved(target: &Target) -> Result<(), Failure> {
    match probe(target)?.iter().find(|signature| signature.name == MOVED) {
        None => Ok(()),
        Some(signature) => Err(moved(target, signature)),
    }
}

pub(super) fn moved(target: &Target, signature: &Signature) -> Failure {
    let path = target.path.display();
    Failure::refused(&target.path, "its data is being moved in place")
        .found(format_args!("the mark of a move (byte {})", signature.at))
        .expected("a disk that is whole")
        .advice(format_args!(
            "run the command that began it again: ubcache unmake --in-place {path}, or ubcache \
             convert {path}"
        ))
}

/// Returns true if a signature is that of [`refuse_moved`].
pub(super) fn is_moved(signature: &Signature) -> bool {
    signature.name == MOVED
}

/// Everything recognized on a device.
pub fn probe(target: &Target) -> Result<Vec<Signature>, Failure> {
    let mut head = vec![0; HEAD_BYTES];
    let count = target.read_some(0, &mut head)?;
    Ok(recognize(&head[..count]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_recognises_known_content_and_ignores_zeroes() {
        assert_eq!(recognize(&vec![0; HEAD_BYTES]), []);
        for (name, at, magic) in KNOWN {
            let mut head = vec![0; HEAD_BYTES];
            head[*at as usize..*at as usize + magic.len()].copy_from_slice(magic);
            assert!(recognize(&head).iter().any(|found| found.name == *name), "{name}");
        }
        assert_eq!(recognize(&[0; 100]), []);
    }
}
