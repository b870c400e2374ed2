//! The words of a line, and the values that they are read as.

use std::str::FromStr;

use ubcache_env::{Nanos, Sector, SectorRange};

pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn number<T: FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("\"{text}\" is not a number in range"))
}

pub(super) fn micros(text: &str) -> Parsed<Nanos> {
    let digits = text.strip_suffix("us").ok_or_else(|| format!("\"{text}\" does not end in us"))?;
    number(digits).map(Nanos::from_micros)
}

pub(super) fn span(text: &str) -> Parsed<SectorRange> {
    let (start, sectors) =
        text.split_once('+').ok_or_else(|| format!("\"{text}\" is not START+SECTORS"))?;
    Ok(SectorRange::new(Sector(number(start)?), number(sectors)?))
}

pub(super) fn by_name<T: Copy>(word: &str, what: &str, names: &[(&str, T)]) -> Parsed<T> {
    let found = names.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| format!("no {what} is called \"{word}\""))
}

/// The words of a line, taken from the front.
pub(super) struct Words<'a>(pub(super) std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    pub(super) fn maybe(&mut self) -> Option<&'a str> {
        self.0.next()
    }
    pub(super) fn word(&mut self) -> Parsed<&'a str> {
        self.0.next().ok_or_else(|| "there is something missing at the end".to_owned())
    }
    pub(super) fn prefixed<T: FromStr>(&mut self, prefix: &str) -> Parsed<T> {
        let word = self.word()?;
        number(
            word.strip_prefix(prefix)
                .ok_or_else(|| format!("\"{word}\" does not begin with {prefix}"))?,
        )
    }
    /// The value of `name=value`, which has to come next.
    pub(super) fn field(&mut self, name: &str) -> Parsed<&'a str> {
        let word = self.word()?;
        word.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
            .ok_or_else(|| format!("expected {name}=…, found \"{word}\""))
    }
    /// The value of `name=value`, if that comes next.
    pub(super) fn maybe_field(&mut self, name: &str) -> Option<&'a str> {
        let mut ahead = self.0.clone();
        let value = ahead.next()?.strip_prefix(name)?.strip_prefix('=')?;
        self.0 = ahead;
        Some(value)
    }
    /// The next word is this one; if not, it stays.
    pub(super) fn takes(&mut self, word: &str) -> bool {
        let mut ahead = self.0.clone();
        let found = ahead.next() == Some(word);
        if found {
            self.0 = ahead;
        }
        found
    }
    pub(super) fn num<T: FromStr>(&mut self, name: &str) -> Parsed<T> {
        number(self.field(name)?)
    }
    pub(super) fn flag(&mut self, name: &str) -> Parsed<bool> {
        Ok(self.num::<u8>(name)? != 0)
    }
    pub(super) fn named<T: Copy>(&mut self, field: &str, names: &[(&str, T)]) -> Parsed<T> {
        by_name(self.field(field)?, field, names)
    }
    /// The next word, which is one of these names.
    pub(super) fn known<T: Copy>(&mut self, what: &str, names: &[(&str, T)]) -> Parsed<T> {
        by_name(self.word()?, what, names)
    }
    /// Reads which of the words follow, in any order, to the end of the line.
    pub(super) fn flags<const N: usize>(&mut self, names: [&str; N]) -> Parsed<[bool; N]> {
        let mut found = [false; N];
        while let Some(word) = self.maybe() {
            let at = names.iter().position(|name| *name == word);
            found[at.ok_or_else(|| format!("\"{word}\" has no meaning here"))?] = true;
        }
        Ok(found)
    }
}
