//! The loop: inputs of a corpus, changed at random, from a seed. It has no feedback from coverage,
//! as `cargo fuzz` has; it runs on any compiler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ubcache_sim::Rng;

use crate::fuzz::Target;

/// Numbers at the rims of things.
const RIMS: [u64; 12] =
    [0, 1, 2, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, u32::MAX as u64, u64::MAX];

/// The inputs of a corpus, in order of their names.
pub fn corpus(directory: &Path) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(&path).map(|bytes| (path, bytes))).collect()
}

/// Runs a target; the error is the message of its panic.
pub fn run(target: Target, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic".to_owned())
    })
}

/// The input of this number: one of the corpus, with some changes.
pub fn input(target: Target, corpus: &[(PathBuf, Vec<u8>)], seed: u64, number: u64) -> Vec<u8> {
    let mut rng = Rng::fork(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number, target.name);
    let one = |rng: &mut Rng| match corpus.len() as u64 {
        0 => Vec::new(),
        count => corpus[rng.below(count) as usize].1.clone(),
    };
    let mut bytes = one(&mut rng);
    for _ in 0..rng.scale(1, 32) {
        change(&mut bytes, target, &one(&mut rng), &mut rng);
    }
    bytes.truncate(target.max_bytes);
    bytes
}

fn change(bytes: &mut Vec<u8>, target: Target, other: &[u8], rng: &mut Rng) {
    let length = bytes.len() as u64;
    if length == 0 || rng.chance(1, 12) && bytes.len() < target.max_bytes {
        let more = rng.scale(1, 64);
        bytes.extend((0..more).map(|_| rng.bits() as u8));
        return;
    }
    let at = rng.below(length) as usize;
    match rng.below(9) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.bits() as u8,
        2 => bytes[at] = bytes[at].wrapping_add(rng.pick(&[1, 255, 16, 240])),
        3 => {
            let number = rng.pick(&RIMS).to_le_bytes();
            let width = rng.pick(&[1, 2, 4, 8]);
            bytes[at..].iter_mut().zip(&number[..width]).for_each(|(byte, new)| *byte = *new);
        }
        4 => {
            // Numbers on a wire are the other way round.
            let number = rng.pick(&RIMS).to_be_bytes();
            let width = rng.pick(&[2, 4, 8]);
            bytes[at..].iter_mut().zip(&number[8 - width..]).for_each(|(byte, new)| *byte = *new);
        }
        5 => bytes.truncate(at),
        6 => {
            let count = rng.scale(1, 64) as usize;
            let part: Vec<u8> = bytes[at..].iter().take(count).copied().collect();
            let to = rng.below(length) as usize;
            bytes.splice(to..to, part);
        }
        7 => {
            let end = (at + rng.scale(1, 64) as usize).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => {
            let from = rng.below(other.len().max(1) as u64) as usize;
            let count = rng.scale(1, 64) as usize;
            let part: Vec<u8> =
                other.get(from..).unwrap_or_default().iter().take(count).copied().collect();
            bytes.splice(at..(at + part.len()).min(bytes.len()), part.iter().copied());
        }
    }
}
