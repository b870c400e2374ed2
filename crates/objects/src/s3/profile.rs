//! The files of the AWS command line: `~/.aws/credentials` and `~/.aws/config`.

use std::io;
use std::path::{Path, PathBuf};

/// The section of a profile, as far as it is of use here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    /// Access key and secret.
    pub keys: Option<(String, String)>,
    /// Token of a session.
    pub token: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// URL of the store.
    pub endpoint: Option<String>,
}

/// Reads the profile of this name; none: that of `AWS_PROFILE`, or "default". `file`: read in place
/// of `~/.aws/credentials`. Files that are not there say nothing, unless they or the profile were
/// asked for.
pub fn read_profile(name: Option<&str>, file: Option<&Path>) -> io::Result<Profile> {
    let from_environment = std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let wanted = name.map(str::to_owned).or(from_environment);
    let usual = |variable: &str, name: &str| {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".aws").join(name));
        std::env::var_os(variable).map(PathBuf::from).or(home)
    };
    let credentials = file.map(Path::to_owned);
    let credentials = credentials.or_else(|| usual("AWS_SHARED_CREDENTIALS_FILE", "credentials"));
    let mut texts = Vec::new();
    for path in [credentials, usual("AWS_CONFIG_FILE", "config")].into_iter().flatten() {
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.push(text),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && Some(path.as_path()) != file => {}
            Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
        }
    }
    let name = wanted.as_deref().unwrap_or("default");
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    match parse(&texts, name) {
        Some(profile) => Ok(profile),
        None if wanted.is_none() && file.is_none() => Ok(Profile::default()),
        None => Err(io::Error::other(format!(
            "no profile \"{name}\" in {}",
            file.map_or_else(|| "~/.aws/credentials".to_owned(), |file| file.display().to_string())
        ))),
    }
}

/// The profile in the files' texts; an earlier text comes first.
fn parse(texts: &[&str], name: &str) -> Option<Profile> {
    let mut found = false;
    let mut profile = Profile::default();
    let (mut id, mut secret) = (None, None);
    for text in texts {
        let mut here = false;
        for line in text.lines().map(str::trim_end) {
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                let section = section.trim();
                here = section.strip_prefix("profile ").unwrap_or(section).trim() == name;
                found |= here;
            } else if here
                && !line.starts_with([' ', '\t', '#', ';'])
                && let Some((key, value)) = line.split_once('=')
            {
                let value = Some(value.trim().to_owned());
                let into = match key.trim() {
                    "aws_access_key_id" => &mut id,
                    "aws_secret_access_key" => &mut secret,
                    "aws_session_token" => &mut profile.token,
                    "region" => &mut profile.region,
                    "endpoint_url" => &mut profile.endpoint,
                    _ => continue,
                };
                *into = into.take().or(value);
            }
        }
    }
    profile.keys = id.zip(secret);
    found.then_some(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_both_files() {
        let credentials = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n\
                           [other]\n# aws_access_key_id = X\naws_access_key_id=C\n\
                           aws_secret_access_key = D=E\naws_session_token = T\n";
        let config = "[default]\nregion = eu-1\n[profile other]\nregion=eu-2\ns3 =\n  \
                      region = no\nendpoint_url = http://store:9000\n";
        let keys = |id: &str, secret: &str| Some((id.to_owned(), secret.to_owned()));
        let default = parse(&[credentials, config], "default").expect("is there");
        assert_eq!((default.keys, default.region), (keys("A", "B"), Some("eu-1".to_owned())));
        let other = parse(&[credentials, config], "other").expect("is there");
        assert_eq!(other.keys, keys("C", "D=E"));
        assert_eq!(other.token.as_deref(), Some("T"));
        assert_eq!(other.region.as_deref(), Some("eu-2"));
        assert_eq!(other.endpoint.as_deref(), Some("http://store:9000"));
        assert_eq!(parse(&[credentials, config], "third"), None);
    }
}
