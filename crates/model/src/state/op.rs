//! A client operation and its progress.

use super::{Place, SECTORS};

/// Request of a client.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum OpKind {
    /// Read; misses are cached.
    #[default]
    Read,
    /// A write that goes past the cache.
    Bypass,
    /// The same with FUA.
    BypassFua,
    /// A writethrough write.
    Through,
    /// The same with FUA.
    ThroughFua,
    /// A writeback write.
    Back,
    /// The same with FUA.
    BackFua,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
}

impl OpKind {
    /// Every kind.
    pub const ALL: [OpKind; 9] = [
        OpKind::Read,
        OpKind::Bypass,
        OpKind::BypassFua,
        OpKind::Through,
        OpKind::ThroughFua,
        OpKind::Back,
        OpKind::BackFua,
        OpKind::Discard,
        OpKind::Flush,
    ];

    /// Changes content.
    pub fn writes(self) -> bool {
        !matches!(self, OpKind::Read | OpKind::Flush)
    }

    /// Durable with its reply.
    pub fn is_fua(self) -> bool {
        matches!(self, OpKind::BypassFua | OpKind::ThroughFua | OpKind::BackFua)
    }

    /// Leaves a clean copy.
    pub fn is_through(self) -> bool {
        matches!(self, OpKind::Through | OpKind::ThroughFua)
    }

    /// For the command line.
    pub fn word(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Bypass => "bypass",
            OpKind::BypassFua => "bypass-fua",
            OpKind::Through => "through",
            OpKind::ThroughFua => "through-fua",
            OpKind::Back => "back",
            OpKind::BackFua => "back-fua",
            OpKind::Discard => "discard",
            OpKind::Flush => "flush",
        }
    }

    /// Description for timelines.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Bypass => "bypass write",
            OpKind::BypassFua => "FUA bypass write",
            OpKind::Through => "writethrough write",
            OpKind::ThroughFua => "FUA writethrough write",
            OpKind::Back => "writeback write",
            OpKind::BackFua => "FUA writeback write",
            OpKind::Discard => "discard",
            OpKind::Flush => "FLUSH",
        }
    }
}

/// Progress of an operation.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum At {
    /// Not there, or done.
    #[default]
    Nowhere,
    /// Write: in the table, before the decide step.
    Entered,
    /// Write: W3 waits for the journal.
    Waiting,
    /// Write: submitted to the backing device.
    Flying,
    /// Write: the backing device has completed it.
    Completed,
    /// Writeback write: the data is in its place (K1).
    Placed,
    /// Writeback write: K3 waits for the journal.
    Fua,
    /// Read: sectors are being read.
    Reading,
    /// Read: answered, R3 is still to come.
    Filling,
    /// FLUSH: under way.
    Flushing,
    /// Discard over dirty data: B2 waits for the journal.
    TrimWaiting,
    /// Discard over dirty data: submitted to the backing device.
    TrimFlying,
    /// Discard over dirty data: completed, B4 waits for a flush.
    TrimFlushing,
    /// Discard over dirty data: the keys are next.
    TrimDropping,
}

/// Participation of one waiter in the flush of the backing device.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum Wants {
    /// None.
    #[default]
    Nothing,
    /// A flush that starts from now on.
    Flush,
    /// The flush in flight.
    ThisFlush,
}

/// A client operation.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Op {
    /// The request.
    pub kind: OpKind,
    /// Its progress.
    pub at: At,
    /// Its sectors, as bits. After the decide step of a discard: those that are discarded.
    pub mask: u8,
    /// Sectors whose copy must not be published.
    pub doomed: u8,
    /// Sectors that have landed.
    pub landed: u8,
    /// The backing write has failed.
    pub failed: bool,
    /// F5: a flush failed while the write was under way to the backing device.
    pub shaken: bool,
    /// A flush failed before the reply.
    pub in_doubt: bool,
    /// FLUSH: whose.
    pub client: u8,
    /// Read: sectors whose data is dirty.
    pub dirty: u8,
    /// Read: sectors below whose dirty data zeroes were submitted meanwhile (R5).
    pub early: u8,
    /// Read: it looks up for the second time, and keeps such zeroes away.
    pub again: bool,
    /// The removal of P0 to P2 that is not in the decide step is done.
    pub removed: bool,
    /// The early copy is in the index.
    pub copied: bool,
    /// Count of the volatile records that have to become durable.
    pub wait: u8,
    /// FLUSH: its part in the flush of the backing device.
    pub wants: Wants,
    /// Read: what each sector was.
    pub read: [u8; SECTORS],
    /// Read: the place of a hit. Writeback: the place of the data. Otherwise: the place of a key to
    /// restore.
    pub place: [Place; SECTORS],
    /// Read: values that it may return. FLUSH: values that a later crash may leave. As bits.
    pub held: [u8; SECTORS],
    /// Write: values that were held before it took effect, as bits.
    pub before: [u8; SECTORS],
}

impl Op {
    /// Returns true if a reply is outstanding.
    pub fn is_active(&self) -> bool {
        !matches!(self.at, At::Nowhere | At::Filling)
    }

    /// Returns true if it is a client write in the in-flight table.
    pub fn is_write(&self) -> bool {
        self.at != At::Nowhere && self.kind.writes()
    }

    /// Returns true if its backing write may be landing.
    pub fn backing_write(&self) -> bool {
        matches!(self.at, At::Waiting | At::Flying | At::Completed)
    }

    /// Returns true if it discards below dirty keys, in the way of a writeback write.
    pub fn trims(&self) -> bool {
        matches!(self.at, At::TrimWaiting | At::TrimFlying | At::TrimFlushing | At::TrimDropping)
    }

    /// Returns true if it is a write of this sector.
    pub fn has(&self, sector: usize) -> bool {
        self.mask & 1 << sector != 0
    }
}
