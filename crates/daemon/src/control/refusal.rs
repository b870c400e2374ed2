//! A refused request: the reason in words, and the status code of HTTP that goes with it.

use std::fmt;

use serde::{Deserialize, Serialize};
use ubcache_engine::AttributeError;

/// Kind of a refusal.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// 400: the request can't be read.
    Malformed,
    /// 401: the token of the status page is missing or wrong.
    Unauthorized,
    /// 403: the status page was asked for by the name of another site.
    Forbidden,
    /// 404: there is no such volume, set, attribute or path.
    Missing,
    /// 405: the path takes other methods.
    Method,
    /// 408: the request did not come whole in time.
    Late,
    /// 409: not in the state in which the set is.
    #[default]
    Conflict,
    /// 413: the body is too large.
    TooLarge,
    /// 422: a value that is not accepted.
    Unfit,
    /// 500: a device has failed, or the stop was not clean.
    Failed,
    /// 503: not now.
    Busy,
}

impl Kind {
    /// The status code.
    pub fn status(self) -> u16 {
        match self {
            Kind::Malformed => 400,
            Kind::Unauthorized => 401,
            Kind::Forbidden => 403,
            Kind::Missing => 404,
            Kind::Method => 405,
            Kind::Late => 408,
            Kind::Conflict => 409,
            Kind::TooLarge => 413,
            Kind::Unfit => 422,
            Kind::Failed => 500,
            Kind::Busy => 503,
        }
    }
}

/// A refused request, as the body of a response has it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refusal {
    /// Its kind.
    #[serde(skip)]
    #[schema(ignore)]
    pub kind: Kind,
    /// The reason.
    pub message: String,
    /// The value that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// The values that were expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The body of a response to a request that was refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The reason.
    pub error: Refusal,
}

impl Refusal {
    /// A refusal of that kind.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Refusal {
        Refusal { kind, message: message.to_string(), ..Refusal::default() }
    }

    /// There is no such thing. `names`: what there is.
    pub fn missing<'a>(what: &str, name: &str, names: impl Iterator<Item = &'a str>) -> Refusal {
        let names = names.collect::<Vec<_>>().join(", ");
        let refusal = Refusal::new(Kind::Missing, format_args!("there is no {what} \"{name}\""));
        match names.is_empty() {
            true => refusal.expected(format_args!("nothing: there is no {what} at all")),
            false => refusal.expected(format_args!("one of {names}")),
        }
    }

    /// Adds what was found.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Refusal {
        self.found = Some(found.to_string());
        self
    }

    /// Adds what was expected.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Refusal {
        self.expected = Some(expected.to_string());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn advice(mut self, advice: impl fmt::Display) -> Refusal {
        self.advice = Some(advice.to_string());
        self
    }
}

/// All of it in one line, for the log.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        let parts = [("found", &self.found), ("expected", &self.expected), ("to do", &self.advice)];
        for (name, text) in parts.iter().filter_map(|(name, it)| Some((name, it.as_ref()?))) {
            write!(f, "; {name}: {text}")?;
        }
        Ok(())
    }
}

/// Most refusals are about the state in which the set is.
impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal::new(Kind::Conflict, message)
    }
}

impl From<AttributeError> for Refusal {
    fn from(error: AttributeError) -> Refusal {
        let message = error.to_string();
        match error {
            AttributeError::UnknownName { .. } => Refusal::new(Kind::Missing, message),
            AttributeError::BadValue { value, expected, .. } => {
                Refusal::new(Kind::Unfit, message).found(value).expected(expected)
            }
            AttributeError::OutOfRange { value, range, .. } => {
                Refusal::new(Kind::Unfit, message).found(value).expected(range)
            }
            AttributeError::ReadOnly { .. } => Refusal::new(Kind::Unfit, message),
        }
    }
}
