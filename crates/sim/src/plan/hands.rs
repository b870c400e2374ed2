//! Other hands on the disks between two instances: an older copy in the place of a device, a device
//! that is shorter than it was.

use std::fmt;
use std::str::FromStr;

use super::{AfterStart, ControlAction, Plan};
use crate::rng::Rng;

/// Something that is done to a disk while nothing runs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Hand {
    /// Number of the end of an instance (a stop or crash by a control) after which it happens, from
    /// 0.
    pub end: u32,
    /// The disk, as in [`super::DiskFaults::disk`].
    pub disk: usize,
    /// The action.
    pub action: HandAction,
}

/// Action of other hands.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum HandAction {
    /// A copy of it is kept.
    Copy,
    /// The copy takes its place. If the start is refused: what the operator does about it.
    Swap(Remedy),
    /// A backing device loses so many sectors at its end, is used, and gets them back as zeroes. If
    /// it is not taken without them, it gets them back as they were.
    Cut(u64),
    /// The same, and the volume is told of both while it is served. Only if nothing is dirty.
    CutServed(u64),
    /// A backing device whose superblock is in a header, which it is of from the start, is written
    /// by somebody else. If the start is refused: what the operator does about it.
    Write {
        /// The first sector of the volume.
        first: u64,
        /// Their number.
        sectors: u64,
        /// The way on.
        remedy: Remedy,
    },
    /// The content of such a disk is what it was when the copy was made; its header is as it was
    /// left. If the start is refused: what the operator does about it.
    RollBack(Remedy),
}

/// A way on from a refusal.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// The right device is found.
    PutBack,
    /// Cached data is dropped, unless it is dirty.
    DropClean,
    /// The backing device's data counts.
    BelieveDisk,
    /// The dirty data of the cache counts.
    BelieveCache,
}

const REMEDIES: [(&str, Remedy); 4] = [
    ("put-back", Remedy::PutBack),
    ("drop-clean", Remedy::DropClean),
    ("believe-disk", Remedy::BelieveDisk),
    ("believe-cache", Remedy::BelieveCache),
];

/// Has somebody else write to disks without a superblock between runs, in some plans without
/// faults (A9).
pub(super) fn add_foreign_writes(plan: &mut Plan, rng: &mut Rng) {
    let fits = plan.volumes.iter().all(|volume| volume.head == 0 && volume.sectors <= 4096);
    if plan.has_faults() || plan.has_driver() || !plan.hands.is_empty() || !fits {
        return;
    }
    if plan.ops.is_empty() || !rng.chance(1, 6) {
        return;
    }
    add_ends(plan, rng);
    let ends = ends(plan) as u64;
    for _ in 0..rng.between(1, 2) {
        let volume = rng.below(plan.volumes.len() as u64) as usize;
        let all = plan.volumes[volume].sectors;
        let sectors = rng.pick(&[1, 8, 64, all]).min(all);
        let first = rng.below(all - sectors + 1);
        let remedy = rng.pick(&REMEDIES).1;
        let action = HandAction::Write { first, sectors, remedy };
        plan.hands.push(Hand { end: rng.below(ends) as u32, disk: volume + 1, action });
    }
    roll_back(plan, &mut Rng::fork(plan.seed, "rolled back"));
}

/// Has the disks of some of these plans not written but rolled back, or exchanged for an older copy
/// together with their headers.
fn roll_back(plan: &mut Plan, rng: &mut Rng) {
    let ends = ends(plan) as u64;
    let written = std::mem::take(&mut plan.hands);
    for (index, hand) in written.into_iter().enumerate() {
        let HandAction::Write { remedy, .. } = hand.action else { continue };
        // The first hand says that the disk is behind a header.
        let action = match rng.below(4) {
            0 => HandAction::RollBack(remedy),
            1 => HandAction::RollBack(Remedy::PutBack),
            2 if index > 0 => HandAction::Swap(remedy),
            _ => {
                plan.hands.push(hand);
                continue;
            }
        };
        let end = rng.between(1, ends - 1);
        let copied = Hand { end: rng.below(end) as u32, action: HandAction::Copy, ..hand };
        plan.hands.extend([copied, Hand { end: end as u32, action, ..hand }]);
    }
}

/// The number of stops and crashes.
fn ends(plan: &Plan) -> usize {
    plan.controls.iter().filter(|control| control.action.ends_instance()).count()
}

/// Gives the plan three of them at least.
fn add_ends(plan: &mut Plan, rng: &mut Rng) {
    while ends(plan) < 3 {
        let after = AfterStart::default();
        let action = match rng.below(3) {
            0 => ControlAction::Restart(after),
            1 => ControlAction::PowerFailure(after),
            _ => ControlAction::HostRestart(after),
        };
        super::faults::add_control(plan, action, rng);
    }
}

/// Replaces or resizes disks between runs, in some plans without faults.
pub(super) fn add_hands(plan: &mut Plan, rng: &mut Rng) {
    // A run of the driver leaves fewer signs: it need not write a backing superblock.
    let has_size =
        plan.volumes.iter().all(|volume| volume.head == 0 && (16..=4096).contains(&volume.sectors));
    if plan.has_faults() || plan.has_driver() || !has_size || !rng.chance(1, 6) {
        return;
    }
    add_ends(plan, rng);
    let ends = ends(plan) as u64;
    for _ in 0..rng.between(1, 2) {
        let end = rng.between(1, ends - 1);
        if rng.chance(1, 3) {
            let volume = rng.below(plan.volumes.len() as u64) as usize;
            let sectors = 8 * rng.between(1, plan.volumes[volume].sectors / 8 - 1);
            let action = HandAction::Cut(sectors);
            plan.hands.push(Hand { end: end as u32, disk: volume + 1, action });
        } else {
            let disk = if rng.chance(1, 2) {
                0
            } else {
                1 + rng.below(plan.volumes.len() as u64) as usize
            };
            let action = HandAction::Swap(rng.pick(&REMEDIES).1);
            plan.hands.push(Hand { end: rng.below(end) as u32, disk, action: HandAction::Copy });
            plan.hands.push(Hand { end: end as u32, disk, action });
        }
    }
}

/// Has some of the disks lose their ends and get them back while their volumes are served.
pub(super) fn cut_served(plan: &mut Plan, rng: &mut Rng) {
    for hand in &mut plan.hands {
        if let HandAction::Cut(sectors) = hand.action
            && rng.chance(1, 2)
        {
            hand.action = HandAction::CutServed(sectors);
        }
    }
}

fn name_of(remedy: &Remedy) -> &'static str {
    REMEDIES.iter().find(|(_, other)| other == remedy).map_or("?", |(name, _)| name)
}

fn remedy_of(name: &str) -> Result<Remedy, String> {
    let found = REMEDIES.iter().find(|(other, _)| *other == name);
    found.map(|(_, remedy)| *remedy).ok_or_else(|| format!("no remedy is called \"{name}\""))
}

impl fmt::Display for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hand { end, disk, action } = self;
        match action {
            HandAction::Copy => write!(f, "hand {end} copy {disk}"),
            HandAction::Swap(remedy) => {
                write!(f, "hand {end} swap {disk} {}", name_of(remedy))
            }
            HandAction::Cut(sectors) => write!(f, "hand {end} cut {disk} {sectors}"),
            HandAction::CutServed(sectors) => {
                write!(f, "hand {end} cut-served {disk} {sectors}")
            }
            HandAction::RollBack(remedy) => {
                write!(f, "hand {end} roll-back {disk} {}", name_of(remedy))
            }
            HandAction::Write { first, sectors, remedy } => {
                write!(f, "hand {end} write {disk} {first} {sectors} {}", name_of(remedy))
            }
        }
    }
}

impl FromStr for Hand {
    type Err = String;

    fn from_str(line: &str) -> Result<Hand, String> {
        let number =
            |word: &str| word.parse::<u64>().map_err(|_| format!("\"{word}\" is not a number"));
        let words: Vec<&str> = line.split_whitespace().collect();
        let (end, disk, action) = match words.as_slice() {
            ["hand", end, "copy", disk] => (end, disk, HandAction::Copy),
            ["hand", end, "swap", disk, remedy] => {
                (end, disk, HandAction::Swap(remedy_of(remedy)?))
            }
            ["hand", end, "roll-back", disk, remedy] => {
                (end, disk, HandAction::RollBack(remedy_of(remedy)?))
            }
            ["hand", end, "write", disk, first, sectors, remedy] => {
                let (first, sectors) = (number(first)?, number(sectors)?);
                (end, disk, HandAction::Write { first, sectors, remedy: remedy_of(remedy)? })
            }
            ["hand", end, "cut", disk, sectors] => (end, disk, HandAction::Cut(number(sectors)?)),
            ["hand", end, "cut-served", disk, sectors] => {
                (end, disk, HandAction::CutServed(number(sectors)?))
            }
            _ => {
                return Err(
                    "expected hand END copy|swap|cut|cut-served|roll-back|write DISK …".to_owned()
                );
            }
        };
        let (end, disk) = (number(end)?, number(disk)? as usize);
        let of_backing = matches!(
            action,
            HandAction::Cut(_)
                | HandAction::CutServed(_)
                | HandAction::RollBack(_)
                | HandAction::Write { .. }
        );
        if of_backing && disk == 0 {
            return Err("only backing devices are cut or written".to_owned());
        }
        Ok(Hand { end: u32::try_from(end).map_err(|_| "too many ends".to_owned())?, disk, action })
    }
}
