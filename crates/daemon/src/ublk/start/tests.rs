//! Devices of a driver that is made up: what it is asked for, and what is refused before that.

use std::cell::RefCell;

use ubcache_ublk::abi::{ControlCommand, DeviceInfoRaw, control};
use ubcache_ublk::features::UNPRIVILEGED;
use zerocopy::{FromBytes, IntoBytes};

use super::*;

const EPERM: i32 = 1;

/// A driver with some abilities, and the commands that it was given.
struct FakeDriver {
    has: Features,
    /// The caller has CAP_SYS_ADMIN.
    root: bool,
    /// A rule of udev gives devices to users.
    rule: bool,
    commands: RefCell<Vec<(u32, ControlCommand, Vec<u8>)>>,
}

impl ControlDevice for FakeDriver {
    fn command(&self, code: u32, command: ControlCommand, data: &mut [u8]) -> i32 {
        self.commands.borrow_mut().push((code, command, data.to_vec()));
        match code {
            control::GET_FEATURES => data.copy_from_slice(&self.has.0.to_ne_bytes()),
            control::ADD_DEV => {
                let mut raw = DeviceInfoRaw::read_from_bytes(data).expect("a device");
                if !self.root && raw.flags & UNPRIVILEGED == 0 {
                    return -EPERM;
                }
                (raw.device, raw.owner_uid) = (3, 1000);
                data.copy_from_slice(raw.as_bytes());
            }
            control::SET_PARAMS => {}
            other => panic!("a device that is made gets no command {other:#x}"),
        }
        0
    }

    fn path(&self, device: u32) -> String {
        format!("/dev/ublkc{device}")
    }

    fn wait_for_access(&self, _device: u32) -> bool {
        self.rule
    }
}

fn driver(has: &str, root: bool) -> Control<FakeDriver> {
    let has = has.parse().expect("names");
    Control(FakeDriver { has, root, rule: true, commands: RefCell::default() })
}

fn wanted(require: &str) -> Wanted {
    let require = require.parse().expect("names");
    Wanted {
        export: "data".to_owned(),
        device: Some(3),
        identity: 7,
        parameters: Parameters {
            sectors: 2048,
            logical_bytes: 512,
            physical_bytes: 4096,
            max_io_bytes: IO_BYTES_MAX,
            read_only: false,
        },
        lineage: Lineage::Uncached,
        options: UblkOptions { require, ..UblkOptions::default() },
    }
}

fn codes(driver: &Control<FakeDriver>) -> Vec<u32> {
    driver.0.commands.borrow().iter().map(|(code, ..)| *code).collect()
}

#[test]
fn volumes_have_different_identities_and_none_has_that_of_other_servers() {
    let mut uuid = Uuid([7; 16]);
    let first = identity_of(uuid);
    assert_ne!(first, 0);
    uuid.0[3] ^= 0x10;
    assert_ne!(identity_of(uuid), first);
}

#[test]
fn a_required_ability_that_the_driver_lacks_is_named_before_anything_is_made() {
    let old = driver("user-copy,recovery,reissue", true);
    let why = wanted("user-copy,auto-buffers,recovery,quiesce").make(&old).expect_err("refused");
    let said = format!("{why:#}");
    for words in [
        "block device of \"data\"",
        "lacks auto-buffers, quiesce",
        "Linux 6.16 or later",
        "ubcache doctor",
    ] {
        assert!(said.contains(words), "{words} in: {said}");
    }
    assert_eq!(codes(&old), [control::GET_FEATURES]);
    let made = wanted("user-copy,recovery").make(&old).expect("it has these");
    assert!(made.info.features.has(USER_COPY | USER_RECOVERY));
}

#[test]
fn a_device_of_a_former_daemon_is_refused_if_it_lacks_a_required_ability() {
    let it = driver("user-copy,recovery", true);
    let info = wanted("").make(&it).expect("made").info;
    let before = codes(&it).len();
    let why = wanted("reissue").recover(&it, &info).expect_err("refused");
    let said = format!("{why:#}");
    assert!(said.contains("/dev/ublkb3") && said.contains("lacks reissue"), "{said}");
    assert!(said.contains("ubcache ublk remove 3"), "{said}");
    assert_eq!(codes(&it).len(), before);
}

#[test]
fn without_root_a_device_is_made_that_proves_its_user_by_a_path() {
    let it = driver("user-copy,auto-buffers,recovery,reissue,unprivileged", false);
    let made = wanted("").make(&it).expect("made").info;
    assert_eq!(made.features.to_string(), "unprivileged");
    assert_eq!((made.owner.0, made.max_io_bytes), (1000, COPIED_IO_BYTES_MAX));
    let (code, command, data) = it.0.commands.borrow().last().cloned().expect("a command");
    assert_eq!((code, command.device), (control::SET_PARAMS, 3));
    assert_eq!(&data[..usize::from(command.path_len)], b"/dev/ublkc3");
    assert_eq!(usize::from(command.len), data.len());
    // An ability that needs root is missed in time.
    let why = wanted("recovery").make(&it).expect_err("refused");
    assert!(format!("{why:#}").contains("without CAP_SYS_ADMIN lacks recovery"), "{why:#}");
}

#[test]
fn without_root_and_without_a_driver_or_a_rule_for_users_it_says_so() {
    let why = wanted("").make(&driver("user-copy", false)).expect_err("refused");
    assert!(format!("{why:#}").contains("CAP_SYS_ADMIN"), "{why:#}");
    let mut it = driver("unprivileged", false);
    it.0.rule = false;
    let why = wanted("").make(&it).expect_err("refused");
    assert!(format!("{why:#}").contains("67-ublk-users.rules"), "{why:#}");
}
