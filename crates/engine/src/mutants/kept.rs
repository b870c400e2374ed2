//! Mutants of the kept memory (V3).

use ubcache_env::Env;
use ubcache_format::{JournalSeq, Key};

use crate::journal::Journal;
use crate::journal::kept_log::{Anchor, Log};
use crate::rules::{Rule, Rules};

/// `kept-of-another-run`: whatever the memory says goes on from the newest entry on the device.
pub(crate) fn any_anchor(
    rules: Rules,
    fitting: Option<Anchor>,
    log: Option<&Log>,
) -> Option<Anchor> {
    let any = log.and_then(|log| log.anchors.last().copied());
    fitting.or(any.filter(|_| !rules.keeps(Rule::V3OneRun)))
}

impl<E: Env> Journal<E> {
    /// `kept-late`: the records of an entry come when it is written.
    pub(crate) fn keep_late(&self, seq: JournalSeq, keys: &[Key]) {
        if let Some(kept) = self.kept_without(Rule::V3KeptWithRecord) {
            keys.iter().for_each(|key| kept.add(seq, key));
        }
    }

    /// `kept-dropped-early`: the records of an entry go when it is submitted.
    pub(crate) fn drop_kept_early(&self, seq: JournalSeq) {
        if let Some(kept) = self.kept_without(Rule::V3DroppedWhenDurable) {
            kept.durable(seq);
        }
    }
}
