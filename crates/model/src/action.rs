//! Steps that can happen next, and their names in a timeline.

use std::fmt;

use crate::state::OpKind;

/// One step. Slots are numbers of operations from 0, sectors and masks are those of the model.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the words of the timeline say what they are")]
pub enum Action {
    Begin { slot: usize, kind: OpKind, mask: u8 },
    Decide { slot: usize },
    Submit { slot: usize },
    GiveUp { slot: usize },
    Land { slot: usize, sector: usize },
    Ignore { slot: usize, sector: usize },
    Complete { slot: usize },
    Fail { slot: usize },
    Remove { slot: usize },
    EarlyCopy { slot: usize },
    Settle { slot: usize },
    Insert { slot: usize },
    Trim { slot: usize, mask: u8 },
    TrimSubmit { slot: usize },
    TrimComplete { slot: usize },
    TrimDrop { slot: usize },
    Reply { slot: usize },
    Read { slot: usize, sector: usize },
    ReadFails { slot: usize },
    LookAgain { slot: usize },
    Fill { slot: usize },
    JournalSubmit,
    JournalDone,
    JournalFails,
    FlushSubmit,
    FlushDone,
    FlushFails { lost: bool },
    LossShows { sector: usize },
    CacheFlushFails { lost: bool },
    Publish { sector: usize },
    Evict { sector: usize },
    DropCopy { sector: usize },
    WritebackStart { mask: u8 },
    WritebackSubmit,
    WritebackGivesUp,
    WritebackLand { sector: usize },
    WritebackComplete,
    WritebackFail,
    WritebackSettle,
    WritebackMark,
    PowerFailure { kept: u8, of: u8, lost: bool },
    HostRestart { kept: u8, of: u8 },
}

/// The sectors of a mask.
fn sectors(mask: u8) -> &'static str {
    match mask {
        1 => "s0",
        2 => "s1",
        _ => "s0 and s1",
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |slot: usize| slot + 1;
        match *self {
            Action::Begin { slot, kind: OpKind::Flush, .. } => {
                write!(f, "op {}: FLUSH begins", id(slot))
            }
            Action::Begin { slot, kind: OpKind::Read, mask } => {
                write!(
                    f,
                    "op {}: read of {}: looks up, registers its misses",
                    id(slot),
                    sectors(mask)
                )
            }
            Action::Begin { slot, kind, mask } => {
                write!(f, "op {}: {} of w{} to {}", id(slot), kind.name(), id(slot), sectors(mask))
            }
            Action::Decide { slot } => write!(f, "op {}: decides", id(slot)),
            Action::Submit { slot } => {
                write!(f, "op {}: is submitted to the backing device", id(slot))
            }
            Action::GiveUp { slot } => write!(f, "op {}: the journal has failed, error", id(slot)),
            Action::Land { slot, sector } => write!(f, "op {}: lands on s{sector}", id(slot)),
            Action::Ignore { slot, sector } => {
                write!(f, "op {}: the device keeps s{sector}", id(slot))
            }
            Action::Complete { slot } => {
                write!(f, "op {}: the backing device completes it", id(slot))
            }
            Action::Fail { slot } => {
                write!(f, "op {}: the backing device reports an error", id(slot))
            }
            Action::Remove { slot } => write!(f, "op {}: removes the keys", id(slot)),
            Action::EarlyCopy { slot } => write!(f, "op {}: inserts its copy", id(slot)),
            Action::Settle { slot } => write!(f, "op {}: leaves the table, is answered", id(slot)),
            Action::Insert { slot } => write!(f, "op {}: inserts the dirty key", id(slot)),
            Action::Trim { slot, mask } => {
                write!(
                    f,
                    "op {}: decides: {} is dirty, to be discarded below",
                    id(slot),
                    sectors(mask)
                )
            }
            Action::TrimSubmit { slot } => {
                write!(f, "op {}: zeroes are submitted below dirty data", id(slot))
            }
            Action::TrimComplete { slot } => {
                write!(f, "op {}: the backing device completes them", id(slot))
            }
            Action::TrimDrop { slot } => write!(f, "op {}: the dirty keys go", id(slot)),
            Action::Reply { slot } => write!(f, "op {}: is answered", id(slot)),
            Action::Read { slot, sector } => write!(f, "op {}: reads s{sector}", id(slot)),
            Action::ReadFails { slot } => write!(f, "op {}: its data may be lost, error", id(slot)),
            Action::LookAgain { slot } => write!(f, "op {}: looks up again", id(slot)),
            Action::Fill { slot } => write!(f, "op {}: what it read becomes a copy", id(slot)),
            Action::JournalSubmit => f.write_str("journal: the records are being written"),
            Action::JournalDone => f.write_str("journal: they are durable"),
            Action::JournalFails => f.write_str("journal: the write fails"),
            Action::FlushSubmit => f.write_str("backing device: a flush is submitted"),
            Action::FlushDone => f.write_str("backing device: the flush is done"),
            Action::FlushFails { lost } => {
                let lost = if lost { ", data is lost" } else { "" };
                write!(f, "backing device: the flush fails{lost}")
            }
            Action::LossShows { sector } => {
                write!(f, "backing device: reads of s{sector} show the loss")
            }
            Action::CacheFlushFails { lost } => {
                let lost = if lost { ", data is lost" } else { "" };
                write!(f, "cache device: a flush fails{lost}")
            }
            Action::Publish { sector } => write!(f, "the copy of s{sector} goes to the index"),
            Action::Evict { sector } => write!(f, "s{sector} is evicted"),
            Action::DropCopy { sector } => write!(f, "the copy of s{sector} is dropped"),
            Action::WritebackStart { mask } => write!(f, "writeback of {} begins", sectors(mask)),
            Action::WritebackSubmit => f.write_str("writeback: submitted to the backing device"),
            Action::WritebackGivesUp => f.write_str("writeback: the journal has failed"),
            Action::WritebackLand { sector } => write!(f, "writeback: lands on s{sector}"),
            Action::WritebackComplete => f.write_str("writeback: the backing device completes it"),
            Action::WritebackFail => f.write_str("writeback: the backing device reports an error"),
            Action::WritebackSettle => f.write_str("writeback: the range is un-flushed"),
            Action::WritebackMark => f.write_str("writeback: keys turn clean"),
            Action::PowerFailure { kept, of, lost } => {
                let place = if lost { ", cached data is lost" } else { "" };
                write!(
                    f,
                    "POWER FAILURE: {kept} of {of} records in flight survive{place}; recovery"
                )
            }
            Action::HostRestart { kept, of } => {
                write!(f, "HOST RESTART: {kept} of {of} records in flight survive; recovery")
            }
        }
    }
}
