//! Traces packed with xz or zstd, recognised by their first bytes.

use std::io::{BufRead, BufReader, Cursor, Read};

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Returns the bytes of a file, unpacked where it is packed.
pub(super) fn unpack<'a>(mut file: impl Read + 'a) -> std::io::Result<Box<dyn BufRead + 'a>> {
    let mut head = [0; XZ.len()];
    let mut have = 0;
    while have < head.len() {
        match file.read(&mut head[have..])? {
            0 => break,
            count => have += count,
        }
    }
    let head = &head[..have];
    let whole = Cursor::new(head.to_vec()).chain(file);
    Ok(if head == XZ {
        Box::new(BufReader::new(lzma_rust2::XzReader::new(whole, true)))
    } else if head.starts_with(ZSTD) {
        Box::new(BufReader::new(zstd::Decoder::new(whole)?))
    } else {
        Box::new(BufReader::with_capacity(1 << 20, whole))
    })
}
