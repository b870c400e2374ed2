//! Reading the values of attributes, and showing them.

use std::ops::RangeInclusive;

use super::AttributeError;
use super::table::{self, Attribute, Owner, Unit, Values};

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

/// An attribute and a value for it from a user.
pub(super) struct Given<'a> {
    attribute: &'static Attribute,
    value: &'a str,
}

impl<'a> Given<'a> {
    /// A value for a setting of this owner. `reported` are names of the driver's attributes that
    /// have no value here.
    pub(super) fn new(
        owner: Owner,
        name: &str,
        value: &'a str,
        reported: &[&str],
    ) -> Result<Given<'a>, AttributeError> {
        let name_given = name.to_owned();
        match table::attribute(owner, name) {
            Some(attribute) if attribute.is_setting() => Ok(Given { attribute, value }),
            Some(_) => Err(AttributeError::ReadOnly { name: name_given }),
            None if reported.contains(&name) => Err(AttributeError::ReadOnly { name: name_given }),
            None => {
                let settings = table::attributes_of(owner).iter().filter(|it| it.is_setting());
                let known = settings.map(|it| it.name).collect();
                Err(AttributeError::UnknownName { name: name_given, known })
            }
        }
    }

    pub(super) fn bad(&self, expected: impl Into<String>) -> AttributeError {
        let (name, expected) = (self.attribute.name.to_owned(), expected.into());
        let value = self.value.trim_end_matches('\n').to_owned();
        AttributeError::BadValue { name, value, expected }
    }

    /// A whole number in the attribute's unit, which may be named, or another unit of time. One of
    /// too many digits is the largest.
    fn whole(&self) -> Option<u64> {
        let trimmed = self.value.trim();
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
        let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = valid.then(|| digits.parse().unwrap_or(u64::MAX))?;
        let unit = self.attribute.unit;
        let micros = match &trimmed[digits.len()..] {
            "" => return Some(number),
            "%" if unit == Unit::Percent => return Some(number),
            "us" => 1,
            "ms" => 1000,
            "s" => 1_000_000,
            "min" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return None,
        };
        let (micros, each) = (number.saturating_mul(micros), unit.micros()?);
        micros.is_multiple_of(each).then_some(micros / each)
    }

    /// A number in the range of the table.
    pub(super) fn number(&self) -> Result<u64, AttributeError> {
        match self.attribute.values {
            Values::Number(least, most) => self.number_within(least..=most),
            _ => Err(self.bad("another value")),
        }
    }

    /// A number in a range that depends on other settings.
    pub(super) fn number_within(&self, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        let (least, most) = (range.start(), range.end());
        match self.whole() {
            Some(number) if range.contains(&number) => Ok(number),
            Some(_) => Err(self.out_of_range(*least, *most)),
            None => {
                let examples = match self.attribute.unit {
                    Unit::Percent => ", or with %",
                    Unit::Seconds => " (seconds), or with ms, s, min or h",
                    Unit::Milliseconds => " (milliseconds), or with us, ms, s or min",
                    Unit::Microseconds => " (microseconds), or with us, ms or s",
                    Unit::None | Unit::Bytes | Unit::SectorsPerSecond => "",
                };
                Err(self.bad(format!("a whole number from {least} to {most}{examples}")))
            }
        }
    }

    fn out_of_range(&self, least: u64, most: u64) -> AttributeError {
        let unit = self.attribute.unit.word();
        let range = format!("{least} to {most} {unit}").trim_end().to_owned();
        let (name, value) = (self.attribute.name.to_owned(), self.value.trim().to_owned());
        AttributeError::OutOfRange { name, value, range }
    }

    /// Reads a number like [`Given::number_within`], but 0 stands for the default.
    pub(super) fn number_or_default(
        &self,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, AttributeError> {
        match self.whole() {
            Some(0) => Ok(default.clamp(*range.start(), *range.end())),
            _ => self.number_within(range),
        }
    }

    pub(super) fn size(&self) -> Result<u64, AttributeError> {
        let Values::Size(least, most) = self.attribute.values else {
            return Err(self.bad("another value"));
        };
        match parse_human(self.value) {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(_) => Err(self.out_of_range(least, most)),
            Err(_) => Err(self.bad(SIZE)),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, AttributeError> {
        match self.value.trim() {
            "0" => Ok(false),
            "1" => Ok(true),
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

    pub(super) fn text(&self) -> Result<String, AttributeError> {
        let Values::Text(bytes) = self.attribute.values else {
            return Err(self.bad("another value"));
        };
        let text = self.value.strip_suffix('\n').unwrap_or(self.value);
        if text.len() > bytes || text.contains('\0') {
            return Err(self.bad(format!("a text of at most {bytes} bytes, none of them zero")));
        }
        Ok(text.to_owned())
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
