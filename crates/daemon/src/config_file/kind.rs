//! Kinds of values: how each is written in a file, and its range.

use std::fmt;

use toml::de::DeValue;
use ubcache_ublk::Features;

use crate::clients::above_zero;
use crate::config::{ExportWay, NbdAddress, Network};
use crate::size::{parse_size, show_size};

/// Kind of the value of a key.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A path, or `UUID=` or `LABEL=` with what the superblock says.
    Device,
    /// A path.
    Path,
    /// Any text but an empty one.
    Text,
    /// `true` or `false`.
    Switch,
    /// Bytes, at least so many: a number, or text with a suffix.
    Size(u64),
    /// A time with a unit, in microseconds, up to so many.
    Time(u64),
    /// A whole number, at least the first, at most the second.
    Number(u64, u64),
    /// One of some words.
    Word(&'static [&'static str]),
    /// Permissions in octal, as text.
    Permissions,
    /// A group, by name or number.
    Group,
    /// Addresses for clients.
    Addresses,
    /// Ways to a volume.
    Exports,
    /// Abilities of the driver of block devices.
    Abilities,
    /// Networks of clients.
    Networks,
    /// A table of attributes.
    Attributes,
    /// A table with keys of its own.
    Table,
    /// Several tables with keys of their own.
    Tables,
}

/// A value that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Text of any kind.
    Text(String),
    /// A number, or bytes, or microseconds.
    Number(u64),
    /// A switch.
    Switch(bool),
    /// Several texts.
    List(Vec<String>),
}

impl fmt::Display for Value {
    /// The value in its plainest form in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{}", quoted(text)),
            Value::Number(number) => write!(f, "{number}"),
            Value::Switch(switch) => write!(f, "{switch}"),
            Value::List(list) => {
                let list: Vec<String> = list.iter().map(|text| quoted(text)).collect();
                write!(f, "[{}]", list.join(", "))
            }
        }
    }
}

/// A text as TOML.
pub fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

impl fmt::Display for Kind {
    /// The kind in a few words, for documents and messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Device => f.write_str("a path, or \"UUID=…\" or \"LABEL=…\" of the superblock"),
            Kind::Path => f.write_str("a path"),
            Kind::Text => f.write_str("text"),
            Kind::Switch => f.write_str("true or false"),
            Kind::Size(0) => f.write_str("a size, as in \"4M\""),
            Kind::Size(least) => {
                write!(f, "a size of at least {}, as in \"64M\"", show_size(*least))
            }
            Kind::Time(most) => {
                write!(f, "a time from 0 to {} with a unit, as in \"10s\"", show_time(*most))
            }
            Kind::Number(least, u64::MAX) => write!(f, "a whole number of at least {least}"),
            Kind::Number(least, most) => write!(f, "a whole number from {least} to {most}"),
            Kind::Word(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                write!(f, "one of {}", words.join(", "))
            }
            Kind::Permissions => f.write_str("permissions in octal, \"0600\" to \"0777\""),
            Kind::Group => f.write_str("the name or number of a group"),
            Kind::Addresses => f.write_str("a list of \"unix:/PATH\" and \"tcp:ADDRESS:PORT\""),
            Kind::Exports => f.write_str(
                "\"nbd\", \"ublk\", \"ublk:N\", \"vhost-user:/PATH\", or a list of them",
            ),
            Kind::Abilities => f.write_str("a list of abilities, as in [\"user-copy\"]"),
            Kind::Networks => f.write_str("a list of networks, as in [\"10.0.0.0/8\"]"),
            Kind::Attributes => f.write_str("a table of attributes"),
            Kind::Table => f.write_str("a table"),
            Kind::Tables => f.write_str("tables"),
        }
    }
}

impl Kind {
    /// Reads a value; an error says what was found, and what is expected.
    pub fn read(self, value: &DeValue<'_>) -> Result<Value, String> {
        let wrong = || format!("found {}, expected {self}", found(value));
        let text = || value.as_str().filter(|text| !text.is_empty()).ok_or_else(wrong);
        match self {
            Kind::Device | Kind::Path | Kind::Text => Ok(Value::Text(text()?.to_owned())),
            Kind::Switch => value.as_bool().map(Value::Switch).ok_or_else(wrong),
            Kind::Size(least) => {
                let bytes = match (integer(value), value.as_str()) {
                    (Some(bytes), _) => bytes,
                    (None, Some(text)) => parse_size(text).map_err(|_| wrong())?,
                    (None, None) => return Err(wrong()),
                };
                above_zero(bytes, least).map(Value::Number).map_err(|_| wrong())
            }
            Kind::Time(most) => {
                let time = match integer(value) {
                    Some(0) => 0,
                    _ => value.as_str().and_then(parse_time).ok_or_else(wrong)?,
                };
                if time > most { Err(wrong()) } else { Ok(Value::Number(time)) }
            }
            Kind::Number(least, most) => match integer(value) {
                Some(number) if (least..=most).contains(&number) => Ok(Value::Number(number)),
                _ => Err(wrong()),
            },
            Kind::Word(words) => match value.as_str().filter(|text| words.contains(text)) {
                Some(word) => Ok(Value::Text(word.to_owned())),
                None => Err(wrong()),
            },
            Kind::Permissions => match value.as_str().and_then(permissions) {
                Some(mode) => Ok(Value::Number(mode)),
                None => Err(wrong()),
            },
            Kind::Group => {
                let name = match integer(value) {
                    Some(number) => number.to_string(),
                    None => text()?.to_owned(),
                };
                match ubcache_host::group_id(&name) {
                    Ok(Some(number)) => Ok(Value::Number(number.into())),
                    Ok(None) => {
                        Err(format!("there is no group \"{name}\"; `getent group` lists them"))
                    }
                    Err(error) => Err(format!("can't look up the group \"{name}\": {error}")),
                }
            }
            Kind::Addresses => self.list(value, |text| text.parse::<NbdAddress>().map(drop)),
            Kind::Exports => match value.as_str() {
                Some(one) => {
                    one.parse::<ExportWay>().map_err(|_| wrong())?;
                    Ok(Value::List(vec![one.to_owned()]))
                }
                None => self.list(value, |text| text.parse::<ExportWay>().map(drop)),
            },
            Kind::Abilities => self.list(value, |text| text.parse::<Features>().map(drop)),
            Kind::Networks => self.list(value, |text| text.parse::<Network>().map(drop)),
            Kind::Attributes | Kind::Table | Kind::Tables => Err(wrong()),
        }
    }

    fn list(
        self,
        value: &DeValue<'_>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Value, String> {
        let wrong = || format!("found {}, expected {self}", found(value));
        let mut texts = Vec::new();
        for item in value.as_array().ok_or_else(wrong)? {
            let text = item.get_ref().as_str().ok_or_else(wrong)?;
            check(text)?;
            texts.push(text.to_owned());
        }
        Ok(Value::List(texts))
    }

    /// A value for people: sizes, times and permissions with what their numbers mean.
    pub fn show(self, value: &Value) -> String {
        match (self, value) {
            (Kind::Size(_), Value::Number(bytes)) => quoted(&exact_size(*bytes)),
            (Kind::Time(_), Value::Number(micros)) => quoted(&show_time(*micros)),
            (Kind::Permissions, Value::Number(mode)) => quoted(&format!("{mode:04o}")),
            (_, value) => value.to_string(),
        }
    }
}

/// A size with the largest suffix that loses nothing.
fn exact_size(bytes: u64) -> String {
    let suffixes = [("T", 40), ("G", 30), ("M", 20), ("k", 10)];
    let fits = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match suffixes.iter().find(fits) {
        Some((suffix, shift)) => format!("{}{suffix}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Units of time, in microseconds, the largest first.
const UNITS: &[(&str, u64)] = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("min", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
    ("us", 1),
];

/// A time in microseconds, of text such as `30s`, `100us`, `5min`.
pub fn parse_time(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "m" => "min",
        "µs" => "us",
        unit => unit,
    };
    let number: u64 = number.parse().ok()?;
    if unit.is_empty() && number == 0 {
        return Some(0);
    }
    let (_, micros) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*micros)
}

/// Microseconds with the largest unit that loses nothing.
pub fn show_time(micros: u64) -> String {
    if micros == 0 {
        return "0s".to_owned();
    }
    let fits = |(_, unit): &&(&str, u64)| micros.is_multiple_of(*unit);
    let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("us", 1));
    format!("{}{name}", micros / unit)
}

fn permissions(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
}

/// A number that is not negative.
pub(super) fn integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A value as it was written, for a message.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.is_empty() => "an empty text".to_owned(),
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(switch) => switch.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_and_print() {
        for (text, micros, shown) in [
            ("0", 0, "0s"),
            ("100us", 100, "100us"),
            ("100 µs", 100, "100us"),
            ("1500ms", 1_500_000, "1500ms"),
            ("30s", 30_000_000, "30s"),
            ("120s", 120_000_000, "2min"),
            ("5m", 300_000_000, "5min"),
            ("24h", 86_400_000_000, "1d"),
        ] {
            assert_eq!(parse_time(text), Some(micros), "{text}");
            assert_eq!(show_time(micros), shown);
        }
        for bad in ["", "s", "10", "-1s", "1.5s", "1y", "99999999999999999999s"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_print_without_a_loss() {
        for (bytes, shown) in
            [(0, "0"), (4096, "4k"), (384 << 20, "384M"), (1 << 40, "1T"), (3, "3")]
        {
            assert_eq!(exact_size(bytes), shown);
        }
    }
}
