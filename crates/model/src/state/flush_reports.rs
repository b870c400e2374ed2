//! Clients that have to hear of a flush that failed (F4).

/// F4: which clients are owed an error, as bits.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct FlushReports {
    /// Clients that have been heard of.
    pub known: u8,
    /// Clients whose next FLUSH fails.
    pub owed: u8,
    /// A flush has failed, and no client was told.
    pub untold: bool,
}

impl FlushReports {
    /// A client writes or flushes.
    pub fn comes(&mut self, client: u8) {
        if self.known & 1 << client == 0 {
            self.known |= 1 << client;
            self.owed |= u8::from(self.untold) << client;
        }
    }

    /// A flush has failed.
    pub fn flush_failed(&mut self) {
        self.owed = self.known;
        self.untold = true;
    }

    /// Returns true if the FLUSH of this client, which ends now, has to fail. `each`: the others
    /// are still owed an error.
    pub fn flush_ends(&mut self, client: u8, each: bool) -> bool {
        let owed = self.owed & 1 << client != 0;
        let answered = if each || !owed { 1 << client } else { u8::MAX };
        self.owed &= !answered;
        self.untold &= !owed;
        owed
    }
}
