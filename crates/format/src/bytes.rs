//! Little-endian numbers at offsets, without a way to panic: what lies outside the bytes reads as
//! zero and is not written. Every parser checks the length of its input once, before it uses these.

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let end = at.saturating_add(N);
    bytes.get(at..end).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(slice) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        slice.copy_from_slice(value);
    }
}

/// `value` rounded up to a multiple of `unit`; 0 as a unit counts as 1.
pub(crate) fn round_up(value: u64, unit: u64) -> u64 {
    value.checked_next_multiple_of(unit.max(1)).unwrap_or(u64::MAX)
}
