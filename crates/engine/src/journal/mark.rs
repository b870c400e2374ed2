//! What ubcache's journal entries say beside the format, in bytes that the driver leaves arbitrary
//! (docs/format.md §6.1): so a start knows who ran the set last.

const NAME: [u8; 8] = *b"ubcache1";

/// What the mark of an entry says.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mark {
    /// ubcache wrote the entry.
    pub own: bool,
    /// The prio chain it names was written by ubcache and says which buckets are kept free.
    pub own_chain: bool,
    /// What must not stay of the driver has not all been dropped yet: see `set::take_over`.
    pub taking_over: bool,
    /// Where the superblock says lru, the scan-resistant policy is in force.
    pub scan_resistant: bool,
}

impl Mark {
    /// The mark of an entry.
    pub fn parse(bytes: &[u8; 16]) -> Mark {
        let own = bytes[..8] == NAME;
        let flag = |at: usize| own && bytes[at] == 1;
        Mark { own, own_chain: flag(8), taking_over: flag(9), scan_resistant: flag(10) }
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        if self.own {
            bytes[..8].copy_from_slice(&NAME);
            bytes[8] = u8::from(self.own_chain);
            bytes[9] = u8::from(self.taking_over);
            bytes[10] = u8::from(self.scan_resistant);
        }
        bytes
    }
}
