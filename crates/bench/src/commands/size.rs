//! Sizes on the command line, as in 200G.

use ubcache_bench::BLOCK_BYTES;

/// A size of at least a block.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).and_then(|bytes| match bytes >= BLOCK_BYTES {
        true => Ok(bytes),
        false => Err("expected from 4k to less than 16 EiB".to_owned()),
    })
}

/// A number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib") {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => {
            return Err(
                "expected a number of bytes, with k, M, G or T for powers of 1024".to_owned()
            );
        }
    };
    let number: u64 =
        digits.parse().map_err(|_| "expected a whole number before the unit".to_owned())?;
    number
        .checked_mul(1 << (10 * power))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "expected more than 0 and less than 16 EiB".to_owned())
}
