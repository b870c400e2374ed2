//! Volumes that get a socket for virtual machines, and where.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A volume that gets a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VhostUserExport {
    /// Name of the export; none: the only one.
    pub export: Option<String>,
    /// Path of the socket.
    pub path: PathBuf,
}

impl FromStr for VhostUserExport {
    type Err = String;

    /// `EXPORT=PATH`, or `PATH`.
    fn from_str(text: &str) -> Result<VhostUserExport, String> {
        // Names of exports have no "/": what has one is a path with a "=" in it.
        let named = text.split_once('=').filter(|(name, _)| !name.contains('/'));
        let (export, path) = named.map_or((None, text), |(name, path)| (Some(name), path));
        if path.is_empty() || export.is_some_and(str::is_empty) {
            return Err(format!("\"{text}\": expected PATH or EXPORT=PATH"));
        }
        Ok(VhostUserExport { export: export.map(str::to_owned), path: path.into() })
    }
}

impl fmt::Display for VhostUserExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.export {
            Some(export) => write!(f, "{export}={path}"),
            None => write!(f, "{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_and_paths_are_told_apart() {
        let parsed = |text: &str| {
            let parsed = text.parse::<VhostUserExport>();
            parsed.map(|it| (it.export, it.path.display().to_string()))
        };
        let path = |path: &str| Ok((None, path.to_owned()));
        assert_eq!(parsed("/run/a.sock"), path("/run/a.sock"));
        assert_eq!(parsed("a.sock"), path("a.sock"));
        assert_eq!(parsed("/run/a=b"), path("/run/a=b"));
        assert_eq!(parsed("data=/run/a=b"), Ok((Some("data".to_owned()), "/run/a=b".to_owned())));
        assert!(parsed("").is_err());
        assert!(parsed("data=").is_err());
        assert!(parsed("=/run/a").is_err());
    }
}
