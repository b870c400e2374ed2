//! Content of a sector: every write stamps its sectors with a value of its own, through all 512
//! bytes.

use std::fmt;

use crate::rng::mix;

/// The content of one sector: zeroes, or what one write put there.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Value(pub u64);

impl Value {
    /// 512 zeroes.
    pub const ZERO: Value = Value(0);
    /// Content of the disk before the first write of the run.
    pub const INITIAL: Value = Value(1 << 60);
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Value::ZERO => f.write_str("zeroes"),
            Value::INITIAL => f.write_str("the initial content"),
            Value(id) => write!(f, "the value of op {id}"),
        }
    }
}

/// Meaning of the bytes of a sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// The whole sector is this value.
    Value(Value),
    /// Content that was never written to this sector; the text describes it.
    Wrong(String),
}

const WORDS: usize = 64;

fn place(volume: u32, sector: u64) -> u64 {
    u64::from(volume) << 48 | sector
}

/// Cheap, for it is most of what the oracle does; words of different stamps differ in every place.
fn word(base: u64, index: usize) -> u64 {
    base ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn base(value: Value, place: u64) -> u64 {
    mix(value.0 ^ mix(place))
}

/// Fills the bytes of a sector of a volume with a value.
pub fn stamp(volume: u32, sector: u64, value: Value, bytes: &mut [u8]) {
    if value == Value::ZERO {
        bytes.fill(0);
        return;
    }
    let place = place(volume, sector);
    let base = base(value, place);
    for (index, chunk) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = match index {
            0 => value.0,
            1 => place,
            _ => word(base, index),
        };
        *chunk = word.to_le_bytes();
    }
}

/// Recognises the bytes of a sector of a volume.
///
/// # Panics
///
/// If it is not 512 bytes.
pub fn decode(volume: u32, sector: u64, bytes: &[u8]) -> Decoded {
    let words: &[[u8; 8]; WORDS] =
        bytes.as_chunks::<8>().0.try_into().expect("a sector is 512 bytes");
    let read = |index: usize| u64::from_le_bytes(words[index]);
    let (first, second) = (read(0), read(1));
    if first == 0 && bytes == [0; WORDS * 8] {
        return Decoded::Value(Value::ZERO);
    }
    let here = place(volume, sector);
    let value = Value(first);
    let base = base(value, second);
    if (2..WORDS).fold(0, |differs, index| differs | (read(index) ^ word(base, index))) == 0 {
        if second == here {
            return Decoded::Value(value);
        }
        let (volume, sector) = (second >> 48, second & ((1 << 48) - 1));
        return Decoded::Wrong(format!(
            "{value} for sector {sector} of volume {volume}: data of another place"
        ));
    }
    let intact = (2..WORDS).take_while(|&index| read(index) == word(base, index)).count();
    if intact > 0 {
        let torn = (intact + 2) * 8;
        return Decoded::Wrong(format!(
            "torn inside the sector: up to byte {torn} {value}, then something else"
        ));
    }
    Decoded::Wrong(format!("bytes that nobody wrote: {first:016x} {second:016x} …"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_recognised() {
        let mut bytes = [0; 512];
        stamp(1, 77, Value(12), &mut bytes);
        assert_eq!(decode(1, 77, &bytes), Decoded::Value(Value(12)));
        assert!(
            matches!(decode(1, 78, &bytes), Decoded::Wrong(text) if text.contains("another place"))
        );
        let mut other = [0; 512];
        stamp(1, 77, Value(13), &mut other);
        bytes[256..].copy_from_slice(&other[256..]);
        assert!(
            matches!(decode(1, 77, &bytes), Decoded::Wrong(text) if text.contains("up to byte 256"))
        );
        stamp(1, 77, Value::ZERO, &mut bytes);
        assert_eq!(decode(1, 77, &bytes), Decoded::Value(Value::ZERO));
        assert!(matches!(decode(1, 77, &[0xee; 512]), Decoded::Wrong(_)));
    }
}
