//! Parts of URIs, and messages about those that can't be read.

use std::fmt;
use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str};

use crate::failure::Failure;

/// The bytes of an export's name that have a meaning in a URI.
pub(super) const IN_EXPORT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?');
/// The same for the path of a socket.
pub(super) const IN_SOCKET: &AsciiSet = &IN_EXPORT.add(b'&').add(b'+');

/// A name that can't be read, for messages.
pub(super) struct Wrong<'a> {
    name: &'a Path,
    scheme: &'a str,
}

impl<'a> Wrong<'a> {
    pub(super) fn new(name: &'a Path, scheme: &'a str) -> Wrong<'a> {
        Wrong { name, scheme }
    }

    pub(super) fn because(&self, found: impl fmt::Display) -> Failure {
        let (what, form) = match self.scheme.to_ascii_lowercase().as_str() {
            "nbd" => ("an NBD export", "nbd://HOST[:PORT]/EXPORT"),
            "nbds" => (
                "an NBD export",
                "nbds://HOST[:PORT]/EXPORT[?tls-certificates=DIRECTORY&tls-hostname=NAME]",
            ),
            "nbds+unix" => (
                "an NBD export",
                "nbds+unix:///EXPORT?socket=PATH[&tls-certificates=DIRECTORY&tls-hostname=NAME]",
            ),
            "s3" => (
                "a volume on an object store",
                "s3://BUCKET/PREFIX[?size=SIZE&object=SIZE&endpoint=http://HOST:PORT&region=REGION\
                 &profile=NAME&credentials=FILE]",
            ),
            _ => ("an NBD export", "nbd+unix:///EXPORT?socket=PATH"),
        };
        Failure::could_not_run(self.name, format_args!("not the URI of {what}"))
            .found(found)
            .expected(form)
            .advice("bytes with a meaning in a URI are written as %XX: a space is %20, % is %25")
    }

    pub(super) fn decode(&self, text: &str) -> Result<String, Failure> {
        let bad = text.match_indices('%').find(|(at, _)| {
            let digits = text.as_bytes().get(at + 1..at + 3);
            !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        });
        if let Some((at, _)) = bad {
            let rest: String = text[at..].chars().take(3).collect();
            return Err(self.because(format_args!("\"{rest}\" instead of % and two digits")));
        }
        let text = percent_decode_str(text).decode_utf8().map_err(|_| {
            self.because(format_args!("\"{text}\", which does not stand for UTF-8"))
        })?;
        match text.contains('\0') {
            true => Err(self.because("a byte that is zero (%00)")),
            false => Ok(text.into_owned()),
        }
    }
}

/// Refuses a part behind `#`.
pub(super) fn without_fragment<'a>(rest: &'a str, wrong: &Wrong<'_>) -> Result<&'a str, Failure> {
    match rest.split_once('#') {
        None => Ok(rest),
        Some((_, fragment)) => Err(wrong.because(format_args!("\"#{fragment}\""))),
    }
}
