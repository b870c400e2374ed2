//! Reading the values of attributes, and showing them.

use std::ops::RangeInclusive;

use super::AttributeError;

/// The largest number that the driver keeps in 32 bits.
pub(super) const MAX_32: u64 = u32::MAX as u64;
/// Room for a label in a superblock.
const LABEL_BYTES: usize = 32;

/// A text that is not a size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{text}\" is not a size: expected {SIZE}")]
pub struct SizeError {
    /// The text as given.
    pub text: String,
}

const SIZE: &str =
    "a whole number of bytes below 2^64, with k, m, g, t, p, e, z or y for powers of 1024";

/// A number in bcache's notation for people: at least one division by 1024, one truncated decimal,
/// a suffix.
pub fn human(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    let mut whole = bytes.unsigned_abs();
    let mut tenth = 0;
    let mut suffix = ' ';
    for unit in "kMGTPE".chars() {
        (whole, tenth, suffix) = (whole / 1024, whole % 1024 * 10 / 1024, unit);
        if whole < 1000 {
            break;
        }
    }
    format!("{sign}{whole}.{tenth}{suffix}")
}

/// Reads a size: a whole number of bytes, or of powers of 1024 with a suffix `k` to `y` in either
/// case.
pub fn parse_human(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        "z" => 7,
        "y" => 8,
        _ => return Err(wrong()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u128 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << (10 * power)).ok_or_else(wrong)?;
    u64::try_from(bytes).map_err(|_| wrong())
}
/// The words of a choice, in the order in which they are shown.
pub(super) type Choices<T> = [(&'static str, T)];

/// A name and a value from a user.
pub(super) struct Given<'a> {
    pub name: &'a str,
    pub value: &'a str,
}

impl Given<'_> {
    pub(super) fn bad(&self, expected: impl Into<String>) -> AttributeError {
        let value = self.value.trim_end_matches('\n').to_owned();
        AttributeError::BadValue { name: self.name.to_owned(), value, expected: expected.into() }
    }

    pub(super) fn unknown(
        &self,
        known: &'static [&'static str],
        reported: &[&str],
    ) -> AttributeError {
        let name = self.name.to_owned();
        if reported.contains(&self.name) {
            AttributeError::ReadOnly { name }
        } else {
            AttributeError::UnknownName { name, known }
        }
    }

    /// The number as written; one of too many digits is the largest.
    fn unclamped(&self) -> Option<u64> {
        let digits = self.value.trim();
        let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| digits.parse().unwrap_or(u64::MAX))
    }

    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        match self.unclamped() {
            Some(number) => Ok(number.clamp(*range.start(), *range.end())),
            None => {
                Err(self.bad(format!("a whole number from {} to {}", range.start(), range.end())))
            }
        }
    }

    /// Reads a number like [`Given::number`], but 0 stands for the default.
    pub(super) fn number_or_default(
        &self,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, AttributeError> {
        let chosen =
            if self.unclamped() == Some(0) { default } else { self.number(range.clone())? };
        Ok(chosen.clamp(*range.start(), *range.end()))
    }

    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        match parse_human(self.value) {
            Ok(bytes) => Ok(bytes.clamp(*range.start(), *range.end())),
            Err(_) => Err(self.bad(SIZE)),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, AttributeError> {
        match self.unclamped() {
            Some(number @ 0..=1) => Ok(number == 1),
            _ => Err(self.bad("0 or 1")),
        }
    }

    pub(super) fn choice<T: Copy>(&self, choices: &Choices<T>) -> Result<T, AttributeError> {
        let chosen = choices.iter().find(|(word, _)| *word == self.value.trim());
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.bad(format!("one of {}", words.join(", ")))
        })
    }

    pub(super) fn label(&self) -> Result<String, AttributeError> {
        let label = self.value.strip_suffix('\n').unwrap_or(self.value);
        if label.len() > LABEL_BYTES || label.contains('\0') {
            return Err(
                self.bad(format!("a text of at most {LABEL_BYTES} bytes, none of them zero"))
            );
        }
        Ok(label.to_owned())
    }
}

/// All words of a choice, the present one in brackets.
pub(super) fn bracketed<T: PartialEq>(choices: &Choices<T>, current: T) -> String {
    let show = |(word, choice): &(&str, T)| {
        if *choice == current { format!("[{word}]") } else { (*word).to_owned() }
    };
    choices.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// The word of the present choice.
pub(super) fn word<T: PartialEq>(choices: &Choices<T>, current: T) -> String {
    let (word, _) =
        choices.iter().find(|(_, choice)| *choice == current).expect("the choices are complete");
    (*word).to_owned()
}

pub(super) fn human_unsigned(bytes: u64) -> String {
    human(i64::try_from(bytes).unwrap_or(i64::MAX))
}
