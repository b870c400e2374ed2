//! Volumes that get a block device, and how.

use std::str::FromStr;

use ubcache_ublk::Features;

/// A volume that gets a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UblkExport {
    /// Name of the export; none: every one.
    pub export: Option<String>,
    /// Number of the device; none: one that is free.
    pub device: Option<u32>,
}

impl FromStr for UblkExport {
    type Err = String;

    /// `EXPORT`, `EXPORT=ID` or `ID`; empty: every volume.
    fn from_str(text: &str) -> Result<UblkExport, String> {
        let number = |text: &str| {
            let wrong = || format!("\"{text}\" is not the number of a device: expected 0, 1, …");
            text.parse().map_err(|_| wrong())
        };
        let export = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        if let Some((name, device)) = text.rsplit_once('=') {
            return Ok(UblkExport { export: export(name), device: Some(number(device)?) });
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(UblkExport { export: None, device: Some(number(text)?) });
        }
        Ok(UblkExport { export: export(text), device: None })
    }
}

/// Settings of block devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UblkOptions {
    /// Volumes that get one.
    pub exports: Vec<UblkExport>,
    /// Queues of a new device.
    pub queues: u16,
    /// Requests that a queue of a new device holds.
    pub depth: u16,
    /// Abilities of the driver that are not used.
    pub without: Features,
    /// Abilities without which a device is not served.
    pub require: Features,
}

impl Default for UblkOptions {
    fn default() -> UblkOptions {
        UblkOptions {
            exports: Vec::new(),
            queues: 1,
            depth: 128,
            without: Features::default(),
            require: Features::default(),
        }
    }
}

impl UblkOptions {
    /// A volume gets a device: its number, if one was chosen.
    pub(crate) fn of(&self, export: &str) -> Option<Option<u32>> {
        let named = self.exports.iter().find(|it| it.export.as_deref() == Some(export));
        let all = || self.exports.iter().find(|it| it.export.is_none());
        named.or_else(all).map(|it| it.device)
    }

    /// Abilities that are required, and that no driver gives with those that are switched off.
    pub fn impossible(&self) -> Option<String> {
        let possible = Features(u64::MAX).of_device(self.without);
        let names: Vec<&str> = possible.lacks(self.require).map(|ability| ability.name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// A number that is meant for one volume, though it would be that of several.
    pub(crate) fn ambiguous(&self, volumes: usize) -> Option<u32> {
        let all = self.exports.iter().find(|it| it.export.is_none())?;
        all.device.filter(|_| volumes > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_switched_off_or_only_for_users_can_t_be_required() {
        let impossible = |without: &str, require: &str| {
            let features = |text: &str| text.parse::<Features>().expect("names");
            let (without, require) = (features(without), features(require));
            UblkOptions { without, require, ..UblkOptions::default() }.impossible()
        };
        assert_eq!(impossible("", "user-copy,auto-buffers,quiesce"), None);
        assert_eq!(impossible("user-copy", "auto-buffers").as_deref(), Some("auto-buffers"));
        assert_eq!(impossible("recovery", "quiesce,reissue").as_deref(), Some("reissue, quiesce"));
        assert_eq!(impossible("", "unprivileged").as_deref(), Some("unprivileged"));
    }

    #[test]
    fn exports_and_numbers_are_told_apart() {
        let parsed = |text: &str| text.parse::<UblkExport>().map(|it| (it.export, it.device));
        assert_eq!(parsed(""), Ok((None, None)));
        assert_eq!(parsed("3"), Ok((None, Some(3))));
        assert_eq!(parsed("data"), Ok((Some("data".to_owned()), None)));
        assert_eq!(parsed("data=7"), Ok((Some("data".to_owned()), Some(7))));
        assert_eq!(parsed("a=b=7"), Ok((Some("a=b".to_owned()), Some(7))));
        assert!(parsed("data=x").is_err());
        assert!(parsed("99999999999").is_err());
    }
}
