//! Knowledge about a volume that no device keeps, for a process that goes on with its clients.

use ubcache_env::{Env, Sector, SectorRange};

use super::CachedVolume;
use crate::coherence::OwedErrors;
use crate::settings::{AttributeError, VolumeSettings};

/// Knowledge about a volume that its process takes to the grave, unless another one goes on with
/// it. The streams are those of its clients: they keep their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remembered {
    /// Attributes that do not survive a restart, with their values.
    pub attributes: Vec<(String, String)>,
    /// Errors of flushes that streams got, and those that they still have to get (F4).
    pub owed: OwedErrors,
    /// Sectors of the backing device that a failed flush may have cost (F5): first one, end.
    pub suspects: Vec<(u64, u64)>,
}

impl<E: Env> CachedVolume<E> {
    /// Everything to be remembered. Of a volume that has stopped, for it may be then that a flush
    /// fails.
    pub fn remembered(&self) -> Remembered {
        let settings = self.settings();
        let names = VolumeSettings::names().into_iter();
        let attributes = names.filter(|name| !matches!(*name, "cache_mode" | "label"));
        let bounds = |range: SectorRange| (range.start.0, range.end.0);
        Remembered {
            attributes: attributes
                .filter_map(|name| Some((name.to_owned(), settings.plain(name)?)))
                .collect(),
            owed: self.coherence.owed_errors(),
            suspects: self.coherence.suspects().iter().map(bounds).collect(),
        }
    }

    /// Goes on with what another process remembers. Before the first request.
    ///
    /// # Errors
    /// An attribute that is not known here; the others are set.
    pub fn remember(&self, remembered: &Remembered) -> Result<(), AttributeError> {
        self.coherence.set_owed_errors(&remembered.owed);
        let size = self.backing.limits().sectors;
        for (start, end) in &remembered.suspects {
            let (start, end) = (Sector((*start).min(size)), Sector((*end).min(size)));
            if start < end {
                self.coherence.suspect(SectorRange::from_bounds(start, end));
            }
        }
        set_all(&remembered.attributes, |name, value| self.set_attribute(name, value))
    }
}

/// Sets attributes of which some limit others: a second time, when those have their values.
pub(crate) fn set_all(
    attributes: &[(String, String)],
    set: impl Fn(&str, &str) -> Result<(), AttributeError>,
) -> Result<(), AttributeError> {
    let mut refused = Ok(());
    for again in [false, true] {
        for (name, value) in attributes {
            let done = set(name, value);
            if again {
                refused = refused.and(done);
            }
        }
    }
    refused
}
