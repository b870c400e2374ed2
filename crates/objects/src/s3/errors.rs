//! Errors of the crate `object_store` as errors of this one.

use std::error::Error as _;

use object_store::Error;
use object_store::client::HttpError;

use crate::store::StoreError;

/// The crate has no status in its type for most errors; the words are of one form.
const BEFORE_STATUS: &str = "status code: ";

/// Code of a request whose time is not that of the store.
const SKEWED: &str = "RequestTimeTooSkewed";

/// The error, with the words of the store.
pub(super) fn translate(error: &Error) -> StoreError {
    let said = innermost(error);
    let words = shortened(&said);
    match error {
        _ if said.contains(SKEWED) => StoreError::ClockSkew(clocks(&said).unwrap_or(words)),
        Error::NotFound { .. } => StoreError::NotFound(words),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::Conflict,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Denied(words),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            StoreError::NotSupported(words)
        }
        _ => match status(&words) {
            Some(501) => StoreError::NotSupported(words),
            Some(408 | 429 | 500..) => StoreError::Busy(words),
            Some(_) => StoreError::Other(words),
            None if is_of_the_network(error) => StoreError::Unreachable(words),
            None => StoreError::Other(words),
        },
    }
}

/// The innermost words: those around them repeat them, and name the crate.
fn innermost(error: &Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let outer = error.to_string();
    let inner = innermost.to_string();
    if status(&inner).is_some() || !outer.contains(BEFORE_STATUS) { inner } else { outer }
}

fn shortened(words: &str) -> String {
    let text = words.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().take(300).collect()
}

/// Both times of a request that was refused for its time.
fn clocks(said: &str) -> Option<String> {
    let between = |tag: &str| {
        let (_, rest) = said.split_once(&format!("<{tag}>"))?;
        Some(shortened(rest.split_once('<')?.0))
    };
    let (here, store) = (between("RequestTime")?, between("ServerTime")?);
    Some(format!("this machine has {here}, the store {store}"))
}

fn status(words: &str) -> Option<u16> {
    let (_, rest) = words.split_once(BEFORE_STATUS)?;
    rest.get(..3)?.parse().ok()
}

fn is_of_the_network(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(found) = cause {
        if found.is::<HttpError>() || found.is::<reqwest::Error>() {
            return true;
        }
        cause = found.source();
    }
    false
}
