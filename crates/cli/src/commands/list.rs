//! `ubcache list`: which devices belong to which set, by their superblocks.

use std::fmt::Write;
use std::path::PathBuf;

use ubcache_daemon::list::listed::ListedDevice;
use ubcache_daemon::list::{Daemons, Listing};
use ubcache_daemon::size::show_size;
use ubcache_daemon::{Code, Failure};

use super::{complain, print, visible};

/// List the devices of this machine that belong to cache sets, by their superblocks
///
/// Looks at all block devices with their partitions, and at the files that daemons serve; or at the
/// devices and files that are named. Nothing is changed, and devices in use are read as well.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit codes: 0 done, 1 a device could not be read, is damaged, or was named \
    and is none of bcache's: the message says which; the others are listed, 2 a device that was \
    named can't be opened.

Example:
  ubcache list
  ubcache list cache.img disk.img --json"
)]
pub struct Args {
    /// Devices or files [default: all block devices, and files that daemons serve]
    #[arg(value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Print JSON: the devices, and those that could not be read
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let named = !args.devices.is_empty();
    let listing = match named {
        true => Listing::of_paths(&args.devices, Daemons::find()),
        false => Listing::of_machine(Daemons::find()),
    };
    print(&if args.json { as_json(&listing) } else { as_text(&listing) })?;
    let Some(worst) = listing.problems.iter().map(|problem| problem.code).max_by_key(|c| *c as u8)
    else {
        return Ok(());
    };
    for problem in &listing.problems {
        complain(&format!("ubcache: {}\n", problem.why));
    }
    Err(Failure::usage("list", "not complete, for the reasons above").with_code(if named {
        worst
    } else {
        Code::Refused
    }))
}

fn as_json(listing: &Listing) -> String {
    serde_json::to_string_pretty(listing).expect("plain data always serializes") + "\n"
}

/// The devices in sets: the cache first.
fn as_text(listing: &Listing) -> String {
    let mut text = devices_as_text(&listing.devices);
    if !listing.block_devices.is_empty() {
        text.push_str("block devices\n");
        text.push_str(&super::ublk::as_text(&listing.block_devices));
    }
    text
}

fn devices_as_text(devices: &[ListedDevice]) -> String {
    let mut sets: Vec<&str> = Vec::new();
    for device in devices {
        let set = device.set_uuid.as_deref().unwrap_or_default();
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    // Devices without a set come last.
    sets.sort_by_key(|set| set.is_empty());
    let width = |text: fn(&ListedDevice) -> String| {
        devices.iter().map(|device| text(device).chars().count()).max().unwrap_or(0)
    };
    let (paths, states) = (width(path), width(state));
    let mut text = String::new();
    for set in sets {
        let title = if set.is_empty() { "no set".to_owned() } else { format!("set {set}") };
        let _ = writeln!(text, "{title}");
        let of_set = devices.iter().filter(|it| it.set_uuid.as_deref().unwrap_or_default() == set);
        let (caches, disks): (Vec<_>, Vec<_>) = of_set.partition(|device| device.role == "cache");
        if caches.is_empty() && disks.iter().any(|disk| disk.needs_cache()) {
            let _ = writeln!(text, "  cache    not found");
        }
        for device in caches.into_iter().chain(disks) {
            let _ = write!(
                text,
                "  {:8} {:paths$}  {:>6}  {:states$}  uuid {}",
                device.role,
                path(device),
                show_size(device.size_bytes),
                state(device),
                device.uuid
            );
            if let Some(label) = &device.label {
                let _ = write!(text, "  label {}", visible(label));
            }
            if let Some(header) = &device.header {
                let _ = write!(text, "  adopted, header {}", header.display());
            }
            if let Some(witness) = device.witness {
                let _ = write!(text, ", {}", words_of_witness(witness));
            }
            if let Some(user) = &device.user {
                let _ = write!(text, "  used by {user}");
            }
            if let Some(other) = &device.same_uuid_as {
                let _ = write!(text, "  the same UUID as {}", other.display());
            }
            text.push('\n');
        }
    }
    text
}

/// Statement of a header on its disk, for people.
pub(super) fn words_of_witness(word: &str) -> &'static str {
    match word {
        "same" => "as a clean stop left it",
        "changed" => "CHANGED by another program",
        "resized" => "RESIZED",
        _ => "last run without a clean stop",
    }
}

fn path(device: &ListedDevice) -> String {
    visible(&device.path.display().to_string())
}

fn state(device: &ListedDevice) -> String {
    match &device.mode {
        Some(mode) => format!("{}, {mode}", device.state),
        None => device.state.to_owned(),
    }
}
