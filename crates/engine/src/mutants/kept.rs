//! Mutants of the kept memory (V3).

use ubcache_env::Env;
use ubcache_format::{JournalSeq, Key};

use crate::journal::Journal;
use crate::rules::Rule;

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
