//! Abilities of the driver. They are asked for, never concluded from a version.

use std::fmt;
use std::str::FromStr;

/// A set of abilities, as the driver numbers them.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u64);

/// An ability by name.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// The name on the command line.
    pub name: &'static str,
    /// Its bit.
    pub bit: u64,
    /// The first Linux that has it.
    pub since: &'static str,
    /// Its use, in words.
    pub what: &'static str,
}

/// Requests that were in flight when the server died are kept for the next one.
pub const USER_RECOVERY: u64 = 1 << 3;
/// And given to it.
pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// A user without CAP_SYS_ADMIN may make the device.
pub const UNPRIVILEGED: u64 = 1 << 5;
/// Commands have the numbers of ioctls.
pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// Data is copied by reads and writes of the character device.
pub const USER_COPY: u64 = 1 << 7;
/// The size can change.
pub const UPDATE_SIZE: u64 = 1 << 10;
/// The data of each request has a place in the table of the ring.
pub const AUTO_PLACES: u64 = 1 << 11;
/// New requests can be kept in the kernel before a server goes.
pub const QUIESCE: u64 = 1 << 12;

/// The abilities that are used where the driver has them.
pub const USED: [Feature; 7] = [
    Feature {
        name: "user-copy",
        bit: USER_COPY,
        since: "6.5",
        what: "data goes straight between requests and the memory of the cache; without it, by way \
               of buffers of its own",
    },
    Feature {
        name: "auto-buffers",
        bit: AUTO_PLACES,
        since: "6.16",
        what: "the cache device reads straight to memory of the requester; without it, data goes \
               through memory of the daemon. Needs user-copy",
    },
    Feature {
        name: "recovery",
        bit: USER_RECOVERY,
        since: "6.5",
        what: "the device outlives its daemon",
    },
    Feature {
        name: "reissue",
        bit: USER_RECOVERY_REISSUE,
        since: "6.5",
        what: "requests in flight at the death of the daemon are carried out by the next one; \
               without it they fail",
    },
    Feature {
        name: "update-size",
        bit: UPDATE_SIZE,
        since: "6.16",
        what: "the device grows with its volume while it is in use",
    },
    Feature {
        name: "quiesce",
        bit: QUIESCE,
        since: "6.16",
        what: "before an upgrade, or a stop while the device is in use, the daemon answers what it \
               was given, and new requests wait in the kernel; without it those that it was given \
               last are carried out by the next one",
    },
    Feature {
        name: "unprivileged",
        bit: UNPRIVILEGED,
        since: "6.5",
        what: "a daemon without CAP_SYS_ADMIN may make a device, which has update-size and none of \
               the others",
    },
];

/// The names of those that are not used, for a report.
pub const UNUSED: [(&str, u64); 8] = [
    ("zero-copy", 1 << 0),
    ("need-get-data", 1 << 2),
    ("zoned", 1 << 8),
    ("fail-io", 1 << 9),
    ("per-io-daemon", 1 << 13),
    ("batch", 1 << 15),
    ("integrity", 1 << 16),
    ("shared-memory-zero-copy", 1 << 19),
];

impl Features {
    /// Returns true if it is there.
    pub fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// Flags of a new device on a driver with these abilities, but for those that are switched off.
    pub fn of_device(self, off: Features) -> Features {
        let used = USED.iter().fold(CMD_IOCTL_ENCODE, |all, feature| all | feature.bit);
        let mut flags = self.0 & used & !off.0 & !UNPRIVILEGED;
        if flags & USER_RECOVERY == 0 {
            flags &= !(USER_RECOVERY_REISSUE | QUIESCE);
        }
        // Data that is not in the cache is copied by position.
        if flags & USER_COPY == 0 {
            flags &= !AUTO_PLACES;
        }
        Features(flags)
    }

    /// Flags of a new device that a user without CAP_SYS_ADMIN makes: the driver trusts its server
    /// with nothing that could keep others waiting, or read memory of others. `None`: there are no
    /// such devices.
    pub fn of_unprivileged_device(self, off: Features) -> Option<Features> {
        let flags = self.0 & !off.0 & (UNPRIVILEGED | UPDATE_SIZE | CMD_IOCTL_ENCODE);
        (flags & UNPRIVILEGED != 0).then_some(Features(flags))
    }

    /// Abilities of a set that are missing in this one.
    pub fn lacks(self, wanted: Features) -> impl Iterator<Item = &'static Feature> {
        USED.iter().filter(move |feature| wanted.has(feature.bit) && !self.has(feature.bit))
    }

    /// The names of those that are there and not used.
    pub fn unused(self) -> impl Iterator<Item = &'static str> {
        UNUSED.iter().filter(move |(_, bit)| self.has(*bit)).map(|(name, _)| *name)
    }

    /// The names of those that are used, with whether each is there.
    pub fn used(self) -> impl Iterator<Item = (&'static Feature, bool)> {
        USED.iter().map(move |feature| (feature, self.has(feature.bit)))
    }
}

impl FromStr for Features {
    type Err = String;

    /// Names with commas between them.
    fn from_str(text: &str) -> Result<Features, String> {
        let mut all = 0;
        for name in text.split(',').filter(|name| !name.is_empty()) {
            let known = USED.iter().find(|feature| feature.name == name);
            all |= known.map(|feature| feature.bit).ok_or_else(|| {
                let names = USED.map(|feature| feature.name).join(", ");
                format!("\"{name}\" is no ability of ublk that is used here; known are {names}")
            })?;
        }
        Ok(Features(all))
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            self.used().filter(|(_, there)| *there).map(|(feature, _)| feature.name).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ability_is_not_used_without_those_that_it_needs() {
        let all = Features(u64::MAX);
        let used = |off: &str| all.of_device(off.parse().expect("names"));
        for bit in [USER_COPY, AUTO_PLACES, USER_RECOVERY, USER_RECOVERY_REISSUE, QUIESCE] {
            assert!(used("").has(bit));
        }
        assert!(!used("user-copy").has(AUTO_PLACES));
        assert!(!used("recovery").has(QUIESCE) && !used("recovery").has(USER_RECOVERY_REISSUE));
        assert!(used("auto-buffers,quiesce").has(USER_COPY | USER_RECOVERY_REISSUE));
        assert_eq!(Features(USER_COPY).of_device(Features::default()).0 & AUTO_PLACES, 0);
    }

    #[test]
    fn a_device_of_a_user_has_nothing_for_which_the_driver_has_to_trust_its_server() {
        let all = Features(u64::MAX);
        assert!(!all.of_device(Features::default()).has(UNPRIVILEGED));
        let used = all.of_unprivileged_device(Features::default()).expect("the driver has it");
        assert_eq!(used.to_string(), "update-size, unprivileged");
        assert_eq!(all.of_unprivileged_device(Features(UNPRIVILEGED)), None);
        assert_eq!(Features(USER_COPY).of_unprivileged_device(Features::default()), None);
        let wanted = "quiesce,update-size".parse().expect("names");
        let missing: Vec<&str> = used.lacks(wanted).map(|feature| feature.name).collect();
        assert_eq!(missing, ["quiesce"]);
    }
}
