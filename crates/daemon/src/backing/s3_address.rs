//! URIs of volumes on object stores: `s3://BUCKET/PREFIX?size=100G&endpoint=http://HOST:PORT`.

use std::fmt;

use percent_encoding::utf8_percent_encode;
use ubcache_objects::s3::Location;

use super::uri::{IN_SOCKET, Wrong, without_fragment};
use crate::failure::Failure;
use crate::size::parse_size;

/// A volume on an object store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3Volume {
    /// Its place.
    pub location: Location,
    /// Size in bytes; `make` needs it.
    pub size_bytes: Option<u64>,
    /// Size of an object in bytes.
    pub object_bytes: Option<u64>,
}

/// Reads what follows `s3://`.
pub(super) fn parse(rest: &str, wrong: &Wrong<'_>) -> Result<S3Volume, Failure> {
    let rest = without_fragment(rest, wrong)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    if bucket.is_empty() {
        return Err(wrong.because("no bucket"));
    }
    let prefix = prefix.trim_end_matches('/');
    let location = Location {
        bucket: wrong.decode(bucket)?,
        prefix: wrong.decode(prefix)?,
        ..Location::default()
    };
    let mut volume = S3Volume { location, size_bytes: None, object_bytes: None };
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let unknown = || wrong.because(format_args!("the parameter \"{parameter}\""));
        let (key, value) = parameter.split_once('=').ok_or_else(unknown)?;
        let value = wrong.decode(value)?;
        let size = || parse_size(&value).map(Some).map_err(|error| wrong.because(error));
        match key {
            "size" => volume.size_bytes = size()?,
            "object" => volume.object_bytes = size()?,
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                volume.location.endpoint = Some(value);
            }
            "region" => volume.location.region = Some(value),
            "profile" => volume.location.profile = Some(value),
            "credentials" => volume.location.credentials = Some(value.into()),
            _ => return Err(unknown()),
        }
    }
    Ok(volume)
}

/// The URI, the same for all ways to write it.
impl fmt::Display for S3Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |text: &str| utf8_percent_encode(text, IN_SOCKET).to_string();
        let Location { bucket, prefix, endpoint, region, profile, credentials } = &self.location;
        write!(f, "s3://{}/{}", encode(bucket), encode(prefix))?;
        let credentials = credentials.as_ref().map(|path| path.to_string_lossy().into_owned());
        let parameters = [
            ("endpoint", endpoint.clone()),
            ("region", region.clone()),
            ("profile", profile.clone()),
            ("credentials", credentials),
            ("size", self.size_bytes.map(|bytes| bytes.to_string())),
            ("object", self.object_bytes.map(|bytes| bytes.to_string())),
        ];
        let given = parameters.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (index, (key, value)) in given.enumerate() {
            write!(f, "{}{key}={}", if index == 0 { '?' } else { '&' }, encode(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backing::BackingName;

    fn s3(text: &str) -> S3Volume {
        match BackingName::parse(Path::new(text)) {
            Ok(BackingName::S3(volume)) => volume,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn uris_name_a_bucket_a_prefix_and_parameters() {
        let text = "s3://b/a/c%20d/?size=100G&endpoint=http://h:9000&object=1M&region=eu&profile=p";
        let volume = s3(text);
        let Location { bucket, prefix, endpoint, region, profile, .. } = volume.location.clone();
        assert_eq!((bucket.as_str(), prefix.as_str()), ("b", "a/c d"));
        assert_eq!(endpoint.as_deref(), Some("http://h:9000"));
        assert_eq!((region.as_deref(), profile.as_deref()), (Some("eu"), Some("p")));
        assert_eq!((volume.size_bytes, volume.object_bytes), (Some(100 << 30), Some(1 << 20)));
        assert_eq!(s3(&volume.to_string()), volume, "{volume}");
        assert_eq!(s3("S3://b"), s3("s3://b/"));
        assert_eq!(BackingName::file_name(Path::new("s3://b/x/disk?size=1G")), Some("disk".into()));
        assert_eq!(BackingName::file_name(Path::new("s3://b")), Some("b".into()));
    }

    #[test]
    fn bad_uris_are_refused_with_the_part_that_is_wrong() {
        for (text, found) in [
            ("s3:///x", "no bucket"),
            ("s3://b/x?size=much", "\"much\" is not a size"),
            ("s3://b/x?endpoint=host", "the parameter \"endpoint=host\""),
            ("s3://b/x?colour=red", "the parameter \"colour=red\""),
            ("s3://b/x#y", "\"#y\""),
        ] {
            let refused = BackingName::parse(Path::new(text)).expect_err(text).to_string();
            assert!(refused.starts_with(text) && refused.contains(found), "{refused}");
            assert!(refused.contains("s3://BUCKET/PREFIX"), "{refused}");
        }
    }
}
