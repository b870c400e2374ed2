//! Packs of the small sets with patches, under all the tools that take a pack for a device. This is
//! a second implementation of the format, from its description in `crates/offline/src/pack/mod.rs`.
//!
//! ```text
//!  byte 0        which set          then 8 bytes for each patch:
//!                                   0 which part, 1–3 where in it, 4 what, 5–6 a number, 7 nothing
//!  parts         0 header │ 1 trailer │ 2 index │ 3 what the chunks have │ 4 the file │ 5 its length
//! ```
//!
//! Checksums and lengths are put right, but for patches to the file.

use std::cell::{OnceCell, RefCell};

use ubcache_format::crc64_we;
use ubcache_offline::{
    Cache, CheckOptions, Checked, Dump, RecoverOptions, RepairOptions, Report, check, map_backed,
    open_set, pack, recover, survey,
};

use crate::device::{Image, MemDevice, run};
use crate::sets::{Base, small};

const BLOCK: usize = 4096;
const CRC: usize = BLOCK - 8;
/// Fields of header and trailer are in these bytes.
const FIELDS: std::ops::Range<usize> = 16..64;
/// Reads of one run, as for the target `check`.
const READS_MAX: u64 = 400_000;

thread_local! {
    static PACKS: OnceCell<Vec<(Base, Parts, Report)>> = const { OnceCell::new() };
}

/// A pack, taken apart.
#[derive(Clone)]
struct Parts {
    header: Vec<u8>,
    trailer: Vec<u8>,
    index: Vec<u8>,
    /// Each chunk: offset of its row in the index, and its content, packed and not.
    chunks: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) as usize
}

fn short(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}

fn unpack(packed: &[u8], bytes: usize) -> Vec<u8> {
    zstd::bulk::decompress(packed, bytes)
        .unwrap_or_else(|error| panic!("a pack as it was written: {error}"))
}

fn squeeze(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap_or_else(|error| panic!("zstd takes any bytes: {error}"))
}

impl Parts {
    fn of(file: &[u8]) -> Parts {
        let trailer = file[file.len() - BLOCK..].to_vec();
        let (at, packed) = (number(&trailer, 24), number(&trailer, 32));
        let index = unpack(&file[at..at + packed], number(&trailer, 40));
        let mut chunks = Vec::new();
        let mut row = 0;
        for _ in 0..number(&trailer, 56) {
            let (at, packed, raw) =
                (number(&index, row), short(&index, row + 8), short(&index, row + 12));
            let packed = file[at..at + packed].to_vec();
            let raw = unpack(&packed, raw);
            chunks.push((row, packed, raw));
            row += 28 + 16 * short(&index, row + 24);
        }
        Parts { header: file[..BLOCK].to_vec(), trailer, index, chunks }
    }

    /// The file with these patches.
    fn file(&self, patches: &[&[u8; 8]]) -> Vec<u8> {
        let mut parts = self.clone();
        let of = |part: u8| patches.iter().filter(move |patch| patch[0] % 6 == part);
        let contents: usize = parts.chunks.iter().map(|chunk| chunk.2.len()).sum();
        for patch in of(3) {
            let mut at = place(patch) % contents.max(1);
            for (_, packed, raw) in &mut parts.chunks {
                if at < raw.len() {
                    apply(raw, at, patch);
                    *packed = squeeze(raw);
                    break;
                }
                at -= raw.len();
            }
        }
        let mut file = parts.header.clone();
        for (row, packed, _) in &parts.chunks {
            let (at, crc) = (file.len() as u64, crc64_we(packed));
            parts.index[*row..row + 8].copy_from_slice(&at.to_le_bytes());
            parts.index[row + 8..row + 12].copy_from_slice(&(packed.len() as u32).to_le_bytes());
            parts.index[row + 16..row + 24].copy_from_slice(&crc.to_le_bytes());
            file.extend(packed);
        }
        let length = parts.index.len();
        of(2).for_each(|patch| apply(&mut parts.index, place(patch) % length.max(1), patch));
        let index = squeeze(&parts.index);
        let at = file.len();
        file.extend(&index);
        file.resize(file.len().next_multiple_of(BLOCK) + BLOCK, 0);
        let fields = [file.len(), at, index.len(), length]
            .map(|field| (field as u64).to_le_bytes())
            .concat();
        parts.trailer[16..48].copy_from_slice(&fields);
        parts.trailer[48..56].copy_from_slice(&crc64_we(&index).to_le_bytes());
        for (part, block) in [(0, &mut parts.header), (1, &mut parts.trailer)] {
            of(part).for_each(|patch| {
                let at = FIELDS.start + place(patch) % FIELDS.len();
                apply(&mut block[..FIELDS.end], at, patch);
            });
            let crc = crc64_we(&block[..CRC]);
            block[CRC..].copy_from_slice(&crc.to_le_bytes());
        }
        file[..BLOCK].copy_from_slice(&parts.header);
        let end = file.len() - BLOCK;
        file[end..].copy_from_slice(&parts.trailer);
        for patch in of(4) {
            let length = file.len();
            apply(&mut file, place(patch) % length, patch);
        }
        for patch in of(5) {
            let blocks = 1 + usize::from(patch[5]) % 4;
            let length = file.len();
            match patch[4] % 3 {
                0 => file.truncate(length.saturating_sub(blocks * BLOCK)),
                1 => file.resize(length + blocks * BLOCK, 0),
                _ => drop(file.drain(BLOCK.min(length)..((1 + blocks) * BLOCK).min(length))),
            }
        }
        file
    }
}

fn place(patch: &[u8; 8]) -> usize {
    usize::from(patch[1]) | usize::from(patch[2]) << 8 | usize::from(patch[3]) << 16
}

fn apply(bytes: &mut [u8], at: usize, patch: &[u8; 8]) {
    let number = u16::from_le_bytes([patch[5], patch[6]]);
    let mut put = |at: usize, new: &[u8]| {
        bytes.iter_mut().skip(at).zip(new).for_each(|(byte, new)| *byte = *new);
    };
    match patch[4] % 6 {
        0 => put(at, &[patch[5]]),
        1 => put(at / 2 * 2, &number.to_le_bytes()),
        2 => put(at / 4 * 4, &u32::from(number).to_le_bytes()),
        3 => put(at / 4 * 4, &(!u64::from(number)).to_le_bytes()),
        4 => put(at / 8 * 8, &(1_u64 << (number % 64)).to_le_bytes()),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= patch[5];
            }
        }
    }
}

/// Checks everything but data: a pack has none.
const METADATA: CheckOptions<'_> = CheckOptions { data: false, view: false, watcher: &() };

/// See the module.
///
/// # Panics
/// Panics if a tool does, if it takes a changed file for the pack that it was, or if it looks for
/// what can't be there for too long.
pub fn pack_files(data: &[u8]) {
    PACKS.with(|packs| {
        let packs = packs.get_or_init(|| small().into_iter().map(packed).collect());
        if let Some((&set, rest)) = data.split_first()
            && let Some((base, parts, report)) = packs.get(usize::from(set) % packs.len())
        {
            let patches: Vec<&[u8; 8]> =
                rest.chunks_exact(8).filter_map(|patch| patch.try_into().ok()).collect();
            one(base, parts, report, &patches);
        }
    });
}

fn packed(base: Base) -> (Base, Parts, Report) {
    let cache = MemDevice::new(base.cache.clone(), base.block);
    let file = RefCell::new(Vec::new());
    let sink = |bytes: &[u8]| {
        file.borrow_mut().extend_from_slice(bytes);
        Ok(())
    };
    run(pack(&cache, &[], sink, &()))
        .unwrap_or_else(|error| panic!("a set without damage: {error}"));
    let report = run(check(&cache, &[], None, METADATA)).report;
    (base, Parts::of(&file.into_inner()), report)
}

fn one(base: &Base, parts: &Parts, report: &Report, patches: &[&[u8; 8]]) {
    let file = MemDevice::new(Image::new(&parts.file(patches)), 512);
    let backing = || Cache::Device(MemDevice::new(base.backing.clone(), base.block));
    let Ok(cache) = run(Cache::open(file.clone())) else {
        assert!(!patches.is_empty(), "a pack as it was written is refused");
        return;
    };
    if !cache.is_pack() {
        assert!(patches.iter().any(|patch| patch[0] % 6 >= 4), "its first bytes are as they were");
        return;
    }
    let backing = backing();
    let mut lines = 0_u64;
    let mut dump = Dump::new(None, true, |line: &str| lines += line.len() as u64);
    let options = CheckOptions { view: true, ..METADATA };
    let Checked { report: found, view, .. } = run(check(&cache, &[], Some(&mut dump), options));
    assert!(!patches.is_empty() || found == *report, "a pack says something else than its set");
    if let Some(view) = &view {
        dump.view(view);
    }
    drop(run(check(&cache, &[&backing], None, METADATA)).report.to_json().to_string());
    for damaged in [false, true] {
        drop(run(async {
            let (view, _) = open_set(&cache, damaged, &()).await?;
            map_backed(&view, &backing, damaged).await
        }));
        let options = RecoverOptions { dry_run: true, damaged, ..RecoverOptions::default() };
        drop(run(recover(&cache, &backing, options, &())));
    }
    let options = RepairOptions { without_data: true, ..RepairOptions::default() };
    if let Ok(repair) = run(survey(&cache, &[&backing], options, &())) {
        drop(repair.to_json().to_string());
    }
    assert!(file.log().is_empty(), "what only reads has written");
    assert!(file.reads() < READS_MAX, "{} reads", file.reads());
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_format::{SUPERBLOCK_BYTES, Superblock};
    use ubcache_offline::PackError;

    /// A pack whose superblock claimed too many buckets made its reader allocate memory for all of
    /// them: up to 32 GiB.
    #[test]
    fn impossible_bucket_count_of_a_pack_is_refused() {
        let base = small().swap_remove(0);
        let (base, mut parts, _) = packed(base);
        let open = |parts: &Parts| {
            let file = MemDevice::new(Image::new(&parts.file(&[])), 512);
            run(Cache::open(file)).map(|cache| cache.is_pack())
        };
        assert_eq!(open(&parts), Ok(true));
        let (_, packed, raw) = &mut parts.chunks[0];
        let mut superblock = Superblock::parse(&raw[..SUPERBLOCK_BYTES]).expect("it comes first");
        assert_eq!(superblock.nbuckets, base.geometry.buckets);
        superblock.nbuckets = 1 << 20;
        raw[..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        *packed = squeeze(raw);
        parts.header[24..32].copy_from_slice(&(1_u64 << 50).to_le_bytes());
        assert_eq!(open(&parts), Ok(true));
        let length = parts.file(&[]).len() as u64;
        superblock.nbuckets = u32::try_from((1 << 26) + 64 * length + 1).expect("a small file");
        let (_, packed, raw) = &mut parts.chunks[0];
        raw[..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        *packed = squeeze(raw);
        assert!(matches!(open(&parts), Err(PackError::TooLarge { what: "buckets", .. })));
    }

    /// An index of pieces without an end takes a thousandth of its bytes when it is packed, and was
    /// unpacked as a whole, and taken apart into three times as much.
    #[test]
    fn oversized_index_of_a_pack_is_refused() {
        let (_, mut parts, _) = packed(small().swap_remove(0));
        let pieces = |parts: &mut Parts, count: u64| {
            parts.header[24..32].copy_from_slice(&(1_u64 << 60).to_le_bytes());
            let start = parts.index.len();
            parts.index.extend([0; 24]);
            parts.index.extend(u32::try_from(count).expect("a number").to_le_bytes());
            for piece in 0..count {
                parts.index.extend(((1_u64 << 40) + piece).to_le_bytes());
                parts.index.extend([1, 0, 0, 0, 1, 0, 0, 0]);
            }
            let chunks = u64::from_le_bytes(parts.trailer[56..64].try_into().expect("8 bytes")) + 1;
            parts.trailer[56..64].copy_from_slice(&chunks.to_le_bytes());
            let file = parts.file(&[]);
            parts.index.truncate(start);
            parts.trailer[56..64].copy_from_slice(&(chunks - 1).to_le_bytes());
            (
                file.len() as u64,
                run(Cache::open(MemDevice::new(Image::new(&file), 512)))
                    .map(|cache| cache.is_pack()),
            )
        };
        assert_eq!(pieces(&mut parts, 100_000).1, Ok(true), "so many holes may be");
        let (length, opened) = pieces(&mut parts, 8_000_000);
        assert!(8_000_000 * 16 > (32 << 20) + 8 * length, "{length} bytes of file");
        assert!(
            matches!(opened, Err(PackError::TooLarge { what: "bytes of index", .. })),
            "{opened:?}"
        );
    }
}
