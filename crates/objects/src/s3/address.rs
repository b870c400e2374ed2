//! The address of a store, checked before the first request: the crate that sends requests panics
//! where it makes no URL.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use reqwest::Url;

use crate::store::StoreError;

/// Checks endpoint, region and bucket, wherever they come from.
pub(super) fn check(builder: &AmazonS3Builder) -> Result<(), StoreError> {
    let value = |key| builder.get_config_value(&key);
    if let Some(bucket) = value(AmazonS3ConfigKey::Bucket) {
        check_name("bucket", &bucket)?;
    }
    if let Some(region) = value(AmazonS3ConfigKey::Region) {
        check_name("region", &region)?;
    }
    value(AmazonS3ConfigKey::Endpoint).map_or(Ok(()), |endpoint| check_endpoint(&endpoint))
}

/// A name is a part of the address of a host.
fn check_name(what: &str, name: &str) -> Result<(), StoreError> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match !name.is_empty() && name.chars().all(is_of_a_name) {
        true => Ok(()),
        false => Err(StoreError::Other(format!(
            "the {what} \"{name}\": a name of letters, digits, \"-\", \".\" and \"_\" is expected"
        ))),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), StoreError> {
    let wrong = |why: &str| {
        let text = format!("the endpoint \"{endpoint}\": {why}; http://HOST:PORT is expected");
        Err(StoreError::Other(text))
    };
    match Url::parse(endpoint) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => wrong("neither http nor https"),
        Ok(url) if url.query().is_some() || url.fragment().is_some() => wrong("more than a host"),
        Ok(_) => Ok(()),
        Err(error) => wrong(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoint: &str, region: &str, bucket: &str) -> Result<(), String> {
        let builder = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_region(region)
            .with_bucket_name(bucket);
        check(&builder).map_err(|error| error.to_string())
    }

    /// Defect: requests to such addresses ended the thread of the store with a panic.
    #[test]
    fn addresses_that_make_no_url_are_refused_by_name() {
        for endpoint in ["http://store:9000", "https://[::1]:9000/", "http://10.0.0.1/base"] {
            assert_eq!(of(endpoint, "eu-west-1", "b.u_c-ket"), Ok(()), "{endpoint}");
        }
        for (endpoint, region, bucket, word) in [
            ("http://store:port", "r", "b", "invalid port"),
            ("http://", "r", "b", "empty host"),
            ("http://store:9000/?x=y", "r", "b", "more than a host"),
            ("store:9000", "r", "b", "neither http nor https"),
            ("store", "r", "b", "relative URL"),
            ("", "r", "b", "relative URL"),
            ("http://store", "eu west", "b", "the region \"eu west\""),
            ("http://store", "r", "b/c", "the bucket \"b/c\""),
        ] {
            let refused = of(endpoint, region, bucket).expect_err(endpoint);
            assert!(refused.contains(word), "{word} in: {refused}");
        }
    }
}
