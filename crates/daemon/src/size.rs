//! Sizes as people write them: `512k`, `4M`, `1.5G`.

/// Reads a size in bytes: a number with an optional suffix `k`, `m`, `g`, `t`, `p` (powers of 1024,
/// in any case, an `iB` or `B` after it is ignored).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not a size: expected a number with an optional suffix k, m, g, t or p"
        )
    };
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits_end);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let suffix = suffix.to_ascii_lowercase();
    let shift =
        match suffix.strip_suffix("ib").or_else(|| suffix.strip_suffix('b')).unwrap_or(&suffix) {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            "p" => 50,
            _ => return Err(wrong()),
        };
    number.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is too large"))
}

/// Writes a size for people: at most one decimal, the suffix of a power of 1024, bytes without a
/// suffix.
pub fn show_size(bytes: u64) -> String {
    let mut value = bytes;
    let mut rest = 0;
    let mut suffix = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        if value < 1024 {
            break;
        }
        rest = value % 1024;
        value /= 1024;
        suffix = next;
    }
    match rest * 10 / 1024 {
        0 => format!("{value}{suffix}"),
        tenths => format!("{value}.{tenths}{suffix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("512", 512, "512"),
            ("4k", 4096, "4k"),
            ("4K", 4096, "4k"),
            ("512KiB", 512 << 10, "512k"),
            ("1536m", 1536 << 20, "1.5G"),
            ("2t", 2 << 40, "2T"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
        }
        for bad in ["", "k", "1x", "-1", "1.5G", "99999999999999999999", "99999999p"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
