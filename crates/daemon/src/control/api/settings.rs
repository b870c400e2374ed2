//! Attributes with new values, as requests give them.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A value of an attribute, as text. Numbers stand for themselves; `true` and `false` for 1 and 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Scalar(pub(super) String);

/// Up to here every program reads an integer as it was written, also one that knows only numbers
/// with a fraction.
pub(super) const EXACT_MAX: u64 = 1 << 53;

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an integer or a boolean")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar(value.to_owned()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
        match value <= EXACT_MAX {
            true => Ok(Scalar(value.to_string())),
            false => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
        match value.unsigned_abs() <= EXACT_MAX {
            true => Ok(Scalar(value.to_string())),
            false => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    /// JSON has no integers of its own: 1e3 is one.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
        match value.fract() == 0.0 && value.abs() <= EXACT_MAX as f64 {
            true => Ok(Scalar(format!("{value:.0}"))),
            false => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar(u8::from(value).to_string()))
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Scalar, D::Error> {
        from.deserialize_any(ScalarVisitor)
    }
}

/// A new value of an attribute.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Value {
    pub(super) value: Scalar,
}

/// The form of [`Value`], for the document.
#[derive(Serialize, ToSchema)]
#[schema(as = AttributeValue)]
pub(super) struct ValueForm {
    /// A string as `ubcache set` takes it, an integer, or a boolean for a switch.
    #[schema(value_type = String)]
    value: String,
}

/// Names of attributes and new values, in order, none of them twice.
pub(super) struct Settings(pub(super) Vec<(String, String)>);

struct SettingsVisitor;

impl<'de> Visitor<'de> for SettingsVisitor {
    type Value = Settings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from names of attributes to values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
        let mut settings: Vec<(String, String)> = Vec::new();
        while let Some((name, Scalar(value))) = map.next_entry::<String, Scalar>()? {
            if settings.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!("the attribute `{name}` comes twice")));
            }
            settings.push((name, value));
        }
        Ok(Settings(settings))
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Settings, D::Error> {
        from.deserialize_map(SettingsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_their_order_and_come_once() {
        let read = |text: &str| serde_json::from_str::<Settings>(text).map(|it| it.0);
        let settings = read(r#"{"b":"4M","a":10,"c":true,"d":1e3}"#).expect("settings");
        let pairs: Vec<_> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("b", "4M"), ("a", "10"), ("c", "1"), ("d", "1000")]);
        for (text, why) in [
            (r#"{"a":1,"a":2}"#, "`a` comes twice"),
            (r#"{"a":null}"#, "a string, an integer or a boolean"),
            (r#"{"a":[1]}"#, "a string, an integer or a boolean"),
            (r#"{"a":0.5}"#, "a string, an integer or a boolean"),
            (r#"{"a":9007199254740993}"#, "a string, an integer or a boolean"),
            (r#"{"a":1e300}"#, "a string, an integer or a boolean"),
            ("[]", "an object from names"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
